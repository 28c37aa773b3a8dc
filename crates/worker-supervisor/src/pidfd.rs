//! A process that is no child of ours, held by a pidfd: whatever becomes of its number, this stays the same process.

use std::io;

use nix::sys::signal::Signal;

use crate::Exit;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use rustix::ioctl::{Updater, ioctl, opcode};
    use rustix::process::{Pid, PidfdFlags, Signal as RawSignal, pidfd_open, pidfd_send_signal};
    use tokio::io::{Interest, unix::AsyncFd};

    use super::{Exit, Signal, io};
    use crate::proc::Proc;

    /// A process held.
    #[derive(Debug)]
    pub(crate) struct Pidfd {
        pid: u32,
        start_ticks: u64,
        fd: AsyncFd<OwnedFd>,
    }

    impl Pidfd {
        /// Holds the process that has this number now; `start_ticks` are its own. Needs a tokio runtime.
        pub(crate) fn open(pid: u32, start_ticks: u64) -> io::Result<Self> {
            let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let number = number.ok_or(io::ErrorKind::InvalidInput)?;
            let fd = pidfd_open(number, PidfdFlags::empty())?;
            // SAFETY: an `OwnedFd` always gives the same open descriptor, and the `AsyncFd` has it to itself until it is
            // dropped: nothing takes it out or closes it.
            let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
            Ok(Self { pid, start_ticks, fd })
        }

        pub(crate) fn pid(&self) -> u32 {
            self.pid
        }

        /// Ends when the process has ended.
        pub(crate) async fn ended(&self) -> Exit {
            if self.fd.readable().await.is_err() {
                // The runtime ends, and with it everybody who would hear of it.
                return std::future::pending().await;
            }
            let status = self.status_of_zombie().or_else(|| self.status_of_reaped());
            status.map_or(Exit::Unknown, Exit::from)
        }

        /// How it ended, as long as its parent has not asked. Whose marks could be read, of that one this is told, too.
        fn status_of_zombie(&self) -> Option<ExitStatus> {
            let stat = Proc::system().stat(self.pid)?;
            let is_it = stat.is_zombie && stat.start_ticks == self.start_ticks;
            is_it.then(|| ExitStatus::from_raw(stat.exit_status))
        }

        pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
            let signal = RawSignal::from_named_raw(signal as i32).ok_or(io::ErrorKind::InvalidInput)?;
            Ok(pidfd_send_signal(self.fd.get_ref(), signal)?)
        }

        /// How it ended, once its parent has asked: from Linux 6.15 on.
        fn status_of_reaped(&self) -> Option<ExitStatus> {
            let mut info = Info {
                mask: INFO_EXIT,
                ..Info::default()
            };
            // SAFETY: the opcode is PIDFD_GET_INFO of linux/pidfd.h, which reads and writes a `struct pidfd_info` of the
            // size that the opcode tells; `Info` is its first version, 64 bytes without padding, and any bytes are valid
            // for its integers. The kernel writes no more than that size.
            unsafe { ioctl(self.fd.as_fd(), Updater::<GET_INFO, Info>::new(&mut info)) }.ok()?;
            (info.mask & INFO_EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code))
        }
    }

    const GET_INFO: rustix::ioctl::Opcode = opcode::read_write::<Info>(0xFF, 11);
    /// The field `exit_code` is asked for, or there.
    const INFO_EXIT: u64 = 1 << 3;

    /// `struct pidfd_info` of linux/pidfd.h.
    #[repr(C)]
    #[derive(Debug, Default)]
    struct Info {
        mask: u64,
        cgroup_id: u64,
        ids: [u32; 11],
        /// As wait(2) tells it.
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Info>() == 64);
}

#[cfg(target_os = "linux")]
pub(crate) use linux::Pidfd;

/// Nothing of the kind: processes that are no children cannot be held, and so are not taken over.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(crate) enum Pidfd {}

#[cfg(not(target_os = "linux"))]
impl Pidfd {
    pub(crate) fn open(_pid: u32, _start_ticks: u64) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn pid(&self) -> u32 {
        match *self {}
    }

    pub(crate) async fn ended(&self) -> Exit {
        match *self {}
    }

    pub(crate) fn signal(&self, _signal: Signal) -> io::Result<()> {
        match *self {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::proc::Proc;

    fn held(script: &str) -> (Child, Pidfd) {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        let stat = Proc::system().stat(child.id()).unwrap();
        let process = Pidfd::open(child.id(), stat.start_ticks).unwrap();
        (child, process)
    }

    #[tokio::test]
    async fn how_a_process_ended_is_known_as_long_as_its_parent_has_not_asked() {
        let (mut child, process) = held("exit 3");
        assert_eq!(process.ended().await, Exit::Code(3));
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn it_is_known_later_where_the_kernel_tells_and_never_wrong() {
        let (mut child, process) = held("exec sleep 1000");
        process.signal(Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        let exit = process.ended().await;
        assert!(matches!(exit, Exit::Signal(15) | Exit::Unknown), "{exit:?}");
        // Its number may be another's by now; the signal reaches nobody.
        assert!(process.signal(Signal::SIGTERM).is_err());
    }
}
