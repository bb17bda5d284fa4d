"""Each way in which a compiler writes a collective, on short programs in its words."""

import pytest

from cm3leon_jax.planning.collectives import find, full_weight_reductions, merged

MESH = {"replica": 4, "fsdp": 64, "tensor": 1}
WEIGHTS = {"feed_forward.up": 4096 * 16384}


def program(*lines: str, computations: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{computations}\nENTRY %main (x: bf16[8]) -> bf16[8] {{\n{body}\n}}\n"


def test_plain_and_synchronous():
    (found,) = find(
        program(
            "%x = bf16[64,16384]{1,0:T(8,128)(2,1)} parameter(0)",
            "ROOT %ag = bf16[4096,16384]{1,0} all-gather(%x), channel_id=1, "
            "replica_groups=mesh['axis_0'=4,'axis_1'=64] {'axis_1'}, dimensions={0}",
        ),
        MESH,
    )
    assert (found.kind, found.group_size, found.axes, found.runs) == ("all-gather", 64, ("fsdp",), 1)
    assert found.full_bytes == 4096 * 16384 * 2
    assert found.sent_bytes == found.full_bytes * 63 / 64
    assert not found.is_asynchronous


@pytest.mark.parametrize(
    ("groups", "size", "axes"),
    [
        ("{{0,64,128,192},{1,65,129,193}}", 4, ("replica",)),
        ("[4,64]<=[256]", 64, ("fsdp",)),
        ("[64,4]<=[4,64]T(1,0)", 4, ("replica",)),
        ("mesh['a'=4,'b'=64] {'a','b'}", 256, ("replica", "fsdp")),
        ("mesh['a'=4,'b'=64] {'b':(8)8}", 8, ("fsdp",)),
        ("{}", 256, ("replica", "fsdp")),
    ],
)
def test_groups_are_read_in_every_notation(groups, size, axes):
    text = program(
        "%x = f32[1024]{0} parameter(0)",
        f"ROOT %ar = f32[1024]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add",
    )
    (found,) = find(text, MESH)
    assert (found.group_size, found.axes) == (size, axes)
    assert found.sent_bytes == pytest.approx(2 * 4096 * (size - 1) / size)


def test_a_reduce_scatter_as_a_fusion_is_no_all_reduce():
    text = program(
        "%x = bf16[4096,16384]{1,0} parameter(0)",
        "ROOT %f = bf16[64,16384]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1.clone",
        computations="""%all-reduce-scatter.1.clone (input.5: bf16[4096,16384]) -> bf16[64,16384] {
  %input.5 = bf16[4096,16384]{1,0} parameter(0)
  %all-reduce.11 = bf16[4096,16384]{1,0} all-reduce(%input.5), replica_groups=[4,64]<=[256], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = bf16[64,16384]{1,0} dynamic-slice(%all-reduce.11, %zero, %zero), dynamic_slice_sizes={64,16384}
}
""",
    )
    (found,) = find(text, MESH)
    assert (found.kind, found.axes, found.full_bytes) == ("reduce-scatter", ("fsdp",), 4096 * 16384 * 2)
    assert full_weight_reductions([found], WEIGHTS) == []


SPARSE_CORE = """%called_computation.7 (p.1: bf16[64,16384]) -> bf16[4096,16384] {
  %p.1 = bf16[64,16384]{1,0} parameter(0)
  ROOT %all-gather.30 = bf16[4096,16384]{1,0} all-gather(%p.1), channel_id=8, replica_groups=[4,64]<=[256]
}, execution_thread="sparsecore"

%async_computation.2 (p.2: bf16[64,16384]) -> bf16[4096,16384] {
  %p.2 = bf16[64,16384]{1,0} parameter(0)
  ROOT %cc = bf16[4096,16384]{1,0} custom-call(%p.2), called_computations={%called_computation.7}
}, execution_thread="sparsecore"

%matmul (p.3: bf16[64,16384]) -> bf16[64,64] {
  %p.3 = bf16[64,16384]{1,0} parameter(0)
  ROOT %c = bf16[64,64]{1,0} convolution(%p.3, %p.3), dim_labels=bf_oi->bf
}
"""


@pytest.mark.parametrize("has_work", [True, False])
def test_a_call_on_the_sparse_core_is_hidden_where_work_lies_between(has_work):
    work = ["%w = bf16[64,64]{1,0} fusion(%x), kind=kOutput, calls=%matmul"] if has_work else []
    text = program(
        "%x = bf16[64,16384]{1,0} parameter(0)",
        '%s = ((), (), s32[8]{0}) async-start(), async_execution_thread="sparsecore", calls=%async_computation.2',
        "%before = bf16[64,64]{1,0} fusion(%x), kind=kOutput, calls=%matmul",
        "%u = ((bf16[64,16384]{1,0}), bf16[4096,16384]{1,0}, s32[8]{0}) async-update(%s, %x)",
        *work,
        "ROOT %d = bf16[4096,16384]{1,0} async-done(%u)",
        computations=SPARSE_CORE,
    )
    (found,) = find(text, MESH)
    assert (found.kind, found.is_asynchronous, found.is_hidden) == ("all-gather", True, has_work)


def test_fusions_that_carry_a_gather_on_count_it_once():
    gather = "all-gather(%p), channel_id=11, replica_groups=mesh['axis_0'=4,'axis_1'=64] {'axis_1'}, dimensions={0}"
    parts = {
        "fused_computation.40": f"%g = bf16[4096,16384]{{1,0}} {gather}\n"
        '  ROOT %r = (bf16[64,16384]{1,0}, u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"',
        "async_collective_fusion.87": f"%g = bf16[4096,16384]{{1,0}} {gather}\n  ROOT %r = (bf16[1]{{0}}) tuple(%g)",
        "fused_computation.42": f"%g = bf16[4096,16384]{{1,0}} {gather}\n"
        '  ROOT %r = bf16[4096,16384]{1,0} custom-call(%g), custom_call_target="AsyncCollectiveDone"',
    }
    text = program(
        "%x = bf16[64,16384]{1,0} parameter(0)",
        "%start = (bf16[64,16384]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%fused_computation.40",
        "%on = (bf16[1]{0}) fusion(%x), kind=kCustom, calls=%async_collective_fusion.87",
        "ROOT %done = bf16[4096,16384]{1,0} fusion(%x), kind=kCustom, calls=%fused_computation.42",
        computations="\n".join(
            f"%{name} (p: bf16[64,16384]) -> bf16[1] {{\n  %p = bf16[64,16384]{{1,0}} parameter(0)\n  {body}\n}}\n"
            for name, body in parts.items()
        ),
    )
    (found,) = find(text, MESH)
    assert (found.kind, found.is_hidden, found.runs) == ("all-gather", True, 1)


def test_on_gpus_start_and_done_unless_they_are_synchronous():
    text = program(
        "%x = f32[1024]{0} parameter(0)",
        "%s = (f32[1024]{0}, f32[65536]{0}) all-gather-start(%x), replica_groups=[4,64]<=[256], dimensions={0}",
        '%work = f32[4096,4096]{1,0} custom-call(%x), custom_call_target="__cublas$gemm"',
        "%d = f32[65536]{0} all-gather-done(%s)",
        "%t = (f32[1024]{0}, f32[65536]{0}) all-gather-start(%x), replica_groups=[4,64]<=[256], "
        'backend_config={"collective_backend_config":{"is_sync":true}}',
        "ROOT %e = f32[65536]{0} all-gather-done(%t)",
    )
    first, second = find(text, MESH)
    assert (first.full_bytes, first.is_hidden) == (65536 * 4, True)
    assert not second.is_asynchronous


def test_a_send_between_slices():
    megascale = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="all-reduce.10_0",_xla_megascale_target="{1,2}x{0:255}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    text = program(
        "%x = bf16[256,8,128]{2,1,0} parameter(0)",
        "%after = token[] after-all()",
        f"%send = (bf16[256,8,128]{{2,1,0}}, u32[], token[]) send(%x, %after), channel_id=2, {megascale}",
        f"%recv = (bf16[256,8,128]{{2,1,0}}, u32[], token[]) recv(%after), channel_id=1, {megascale}",
        "%sent = token[] send-done(%send), channel_id=2",
        "ROOT %received = (bf16[256,8,128]{2,1,0}, token[]) recv-done(%recv), channel_id=1",
    )
    (found,) = find(text, MESH)
    assert (found.kind, found.group_size, found.is_between_slices) == ("all-reduce", 2, True)
    assert found.sent_bytes == 256 * 8 * 128 * 2
    assert not found.is_hidden


def test_loops_multiply_and_a_whole_weight_in_an_all_reduce_is_found():
    text = program(
        "%x = bf16[4096,16384]{1,0} parameter(0)",
        "%zero = s32[] constant(0)",
        "%t = (s32[], bf16[4096,16384]{1,0}) tuple(%zero, %x)",
        'ROOT %w = (s32[], bf16[4096,16384]{1,0}) while(%t), condition=%c, body=%b, metadata={op_name="layers"}',
        computations="""%c (p.1: (s32[], bf16[4096,16384])) -> pred[] {
  %p.1 = (s32[], bf16[4096,16384]{1,0}) parameter(0)
  %n = s32[] constant(32)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

%b (p.2: (s32[], bf16[4096,16384])) -> (s32[], bf16[4096,16384]) {
  %p.2 = (s32[], bf16[4096,16384]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i.2, %one)
  %g = bf16[4096,16384]{1,0} get-tuple-element(%p.2), index=1
  %r = bf16[4096,16384]{1,0} all-reduce(%g), replica_groups=[4,64]<=[256], to_apply=%add
  ROOT %o = (s32[], bf16[4096,16384]{1,0}) tuple(%next, %r)
}
""",
    )
    (found,) = merged(find(text, MESH))
    assert (found.runs, found.loops) == (32, ("layers",))
    assert full_weight_reductions([found], WEIGHTS) == [(found, ("feed_forward.up",))]
