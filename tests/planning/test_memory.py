"""Memory as the compiler writes it down."""

from cm3leon_jax.planning import hlo, memory

ASSIGNMENT = """BufferAssignment:
allocation 0: size 1024, color 1, page 0, preallocated-temp:
 value: <1 core @1> (size=1024,offset=0): bf16[512]{0:S(1)}
allocation 1: size 400, page 0, parameter 0, shape |f32[100]| at ShapeIndex {}, maybe-live-out:
 value: <2 state @0> (size=400,offset=0): f32[100]{0}
allocation 2: size 500, page 0, thread-local:
 value: <3 of_a_callee @0> (size=500,offset=0): u8[500]{0}
allocation 3: size 3000, page 0, preallocated-temp:
 value: <4 scores @0> (size=2000,offset=0): f32[500]{0:T(1024)}
 value: <5 again{1} @0> (size=1800,offset=100): f32[450]{0}
 value: <6 hidden @0> (size=1000,offset=2000): bf16[500]{0}
"""
PROGRAM = """ENTRY %main (state: f32[100]) -> f32[500] {
  %state = f32[100]{0} parameter(0), metadata={op_name="state['step']"}
  %scores = f32[500]{0} broadcast(%state), metadata={op_name="jit(step)/jvp()/dot_general"}
  %hidden = bf16[500]{0} copy(%state)
  ROOT %out = f32[500]{0} add(%scores, %hidden), metadata={op_name="jit(step)/add"}
}
"""


def test_the_total_leaves_out_other_memories_and_what_lies_in_callers_buffers():
    assert memory.total_bytes(ASSIGNMENT) == 400 + 3000


def test_the_largest_share_no_place():
    found = memory.largest(ASSIGNMENT, hlo.parse(PROGRAM))
    assert [(buffer.bytes, buffer.array, buffer.op_name) for buffer in found] == [
        (2000, "f32[500]", "jit(step)/jvp()/dot_general"),
        (1000, "bf16[500]", "jit(step)/add"),
        (400, "f32[100]", "state['step']"),
    ]


def test_an_out_of_memory_message():
    message = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: ... (161.50G) exceeds available HBM (95.73G). HLO module"
    assert memory.is_out_of_memory(message)
    assert memory.bytes_of_message(message) == 161.5 * 2**30
    assert not memory.is_out_of_memory("INTERNAL: something else")
