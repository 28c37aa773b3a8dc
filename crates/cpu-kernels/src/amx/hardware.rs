//! Tile registers of the processor.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::{TileShapes, TileUnit};

/// The calling thread's tile registers, configured; they are released when it is dropped. The compiler knows of no
/// value in a tile register and uses none itself, so what lies there stays from one `asm!` to the next.
pub(crate) struct HardwareUnit {
    // The registers are the thread's: a unit stays where it was configured.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for HardwareUnit {
    fn drop(&mut self) {
        // SAFETY: a unit exists only where the processor has tiles (`configured`); nothing of them is used any more.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl TileUnit for HardwareUnit {
    unsafe fn configured(shapes: &TileShapes) -> Self {
        // SAFETY: the instruction reads the 64 bytes that `shapes` is; the caller vouches for the unit. Memory is not
        // declared untouched, so the compiler completes the structure before.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, readonly)) };
        Self {
            not_send: std::marker::PhantomData,
        }
    }

    #[inline(always)]
    fn zero<const C: usize>(&mut self) {
        // SAFETY: a unit is configured; only a tile register changes.
        unsafe { asm!("tilezero tmm{c}", c = const C, options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: a unit is configured; the caller vouches for the rows.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) stride,
                options(nostack, readonly));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: a unit is configured; the caller vouches for the rows.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack));
        }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: a unit is configured; only a tile register changes.
        unsafe {
            asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, nomem));
        }
    }
}

/// Whether the processor has AMX-TILE and AMX-INT8 and the system has let this process use them.
pub(super) fn is_permitted() -> bool {
    const LEAF_FEATURES: u32 = 7;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let wanted = AMX_TILE | AMX_INT8;
    __cpuid_count(0, 0).eax >= LEAF_FEATURES
        && __cpuid_count(LEAF_FEATURES, 0).edx & wanted == wanted
        && ask_for_permission()
}

/// Linux grants the tiles' 8 KiB of state per thread only on request (`Documentation/arch/x86/xstate.rst`); asking
/// again does no harm, and threads inherit the permission.
#[cfg(target_os = "linux")]
fn ask_for_permission() -> bool {
    const SYS_ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: a system call with two numbers; it touches no memory of this process. `syscall` clobbers rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// How other systems grant tiles is not known here.
#[cfg(not(target_os = "linux"))]
fn ask_for_permission() -> bool {
    false
}
