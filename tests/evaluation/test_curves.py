"""Curves of logged numbers."""

from cm3leon_jax.evaluation.curves import Curve, logged, plot

LOG = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": None}, {"step": 3, "eval_loss": 4.0}, {"step": 4, "loss": 3.0}]


def test_steps_without_the_number_are_not_there():
    assert logged(LOG, "loss") == [(1, 5.0), (4, 3.0)]
    assert logged(LOG, "other") == []


def test_a_plot_is_one_svg_that_is_always_the_same():
    curves = [Curve("training", "#444444", logged(LOG, "loss")), Curve("none", "#1f77b4", [])]
    points = Curve("held out", "#d95f02", logged(LOG, "eval_loss"), is_line=False)
    svg = plot([*curves, points], "nats per token")
    assert svg.startswith("<svg") and svg == plot([*curves, points], "nats per token")
    assert "#444444" in svg and "#d95f02" in svg and "#1f77b4" not in svg


def test_nothing_logged_no_plot():
    assert plot([], "nats per token") == plot([Curve("none", "#444444", [])], "nats per token") == ""
