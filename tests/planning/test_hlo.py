"""Reading the text of programs: types, and how often loops run."""

import pytest

from cm3leon_jax.planning import hlo

LOOP = """
HloModule jit_step

%cond (p.1: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32)
  %p.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%counter.1, %bound), direction=LT
}

%body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], f32[8]{0}) parameter(0)
  %counter.2 = s32[] get-tuple-element(%p.2), index=0
  %x = f32[8]{0} get-tuple-element(%p.2), index=1
  %one = s32[] constant(STEP)
  %next = s32[] add(%counter.2, %one)
  ROOT %t = (s32[], f32[8]{0}) tuple(%next, %x)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %first = s32[] constant(START)
  %start = (s32[], f32[8]{0}) tuple(%first, %a)
  %loop = (s32[], /*index=1*/f32[8]{0}) while(%start), condition=%cond, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(("start", "step", "times"), [(0, 1, 32), (1, 1, 31), (0, 2, 16), (30, 4, 1)])
def test_a_loop_runs_from_its_start_to_its_bound_by_its_step(start, step, times):
    program = hlo.parse(LOOP.replace("START", str(start)).replace("STEP", str(step)))
    entry = program.computations[program.entry]
    assert program.entry == "main"
    assert entry.by_name["loop"].op_name == "jit(step)/while"
    assert hlo.trip_count(program, entry, entry.by_name["loop"]) == times


def test_a_count_that_the_compiler_wrote_down_is_taken():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    program = hlo.parse(LOOP.replace("body=%body", known))
    entry = program.computations["main"]
    assert hlo.trip_count(program, entry, entry.by_name["loop"]) == 7


def test_bytes_and_elements_of_types():
    nested = "((bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[7]{0}), f32[], /*index=2*/s4[3]{0})"
    assert hlo.arrays(nested) == [("bf16", (2, 3)), ("pred", (7,)), ("f32", ()), ("s4", (3,))]
    assert hlo.num_bytes(nested) == 12 + 7 + 4 + 2
    assert hlo.num_bytes("f8e4m3fn[16]{0}") == 16
