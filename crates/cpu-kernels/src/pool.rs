//! The threads that share a step's work.
//!
//! A step dispatches some hundred small jobs, so a dispatch must cost about a microsecond and allocate nothing: a job is
//! a reference to a closure that the caller keeps on its stack, published by one atomic store. Who waits spins for some
//! microseconds, then yields (on a busy machine a spinning waiter would keep the one it waits for from running), then
//! parks.
//!
//! The whole state of a job is one atomic word (see [`word`]). A worker enters a job by counting itself in and leaves by
//! counting itself out; when the caller's own share is done it closes the job to those that have not entered and waits
//! only for those that have. So a worker that comes late, because its core is busy with something else, costs nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::{fmt, hint, io, thread};

/// Rounds of spinning, some tens of nanoseconds each.
const SPINS: u32 = 400;
/// Rounds of yielding between spinning and parking.
const YIELDS: u32 = 100;

/// What a job does, on the worker of the given number.
type Work<'a> = &'a (dyn Fn(usize) + Sync + 'a);
/// The same without its lifetime.
type ErasedWork = *const (dyn Fn(usize) + Sync);

/// The parts of the state word.
mod word {
    /// Workers inside of the job.
    pub(super) const ACTIVE: u64 = 1;
    const ACTIVE_MASK: u64 = 0x3fff;
    /// Workers that have entered it.
    pub(super) const ENTERED: u64 = 1 << 14;
    const ENTERED_SHIFT: u32 = 14;
    const ENTERED_MASK: u64 = 0x3fff;
    /// Nobody else may enter.
    pub(super) const CLOSED: u64 = 1 << 28;
    /// The caller is about to park until nobody is inside.
    pub(super) const CALLER_PARKS: u64 = 1 << 29;
    /// The threads shall end.
    pub(super) const STOP: u64 = 1 << 30;
    /// The job's number; it wraps around.
    const EPOCH_SHIFT: u32 = 32;

    /// Most workers that the counts have room for.
    pub(super) const MAX_WORKERS: usize = 0x3fff;

    pub(super) fn active(word: u64) -> u64 {
        word & ACTIVE_MASK
    }

    pub(super) fn entered(word: u64) -> u64 {
        word >> ENTERED_SHIFT & ENTERED_MASK
    }

    pub(super) fn epoch(word: u64) -> u32 {
        (word >> EPOCH_SHIFT) as u32
    }

    /// The word of the job after this one: open, nobody inside.
    pub(super) fn next(word: u64) -> u64 {
        u64::from(epoch(word).wrapping_add(1)) << EPOCH_SHIFT
    }
}

/// Keeps what different threads write in different cache lines (two, as processors fetch them in pairs).
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    state: Apart<AtomicU64>,
    /// The open job's work. Written by the caller before it opens a job, when nobody is inside of
    /// the last one; read by workers that are inside.
    work: UnsafeCell<ErasedWork>,
    /// Per worker but the caller: it is parked, or about to.
    parked: Box<[Apart<AtomicBool>]>,
    /// The thread that dispatched the job, to be unparked when the last worker leaves.
    caller: Mutex<Option<Thread>>,
    /// The first panic of the job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all but `work` is `Sync`, and `work` is only written while no worker is inside of a job (`Pool::launch`) and
// only read by workers inside, the release and acquire of `state` lying between; what it refers to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; what is `Sync` may be called from another thread.
unsafe impl Send for Shared {}

/// A fixed number of threads that run one job at a time; the caller of a job is its worker 0.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held while a job runs.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` workers: the caller of a job and `threads - 1` threads named `model-1`, `model-2`, ...
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: NonZeroUsize) -> io::Result<Self> {
        let others = threads.get() - 1;
        if others > word::MAX_WORKERS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{threads} threads are more than a pool can have ({})",
                    word::MAX_WORKERS + 1
                ),
            ));
        }
        let shared = Arc::new(Shared {
            state: Apart(AtomicU64::new(word::CLOSED)),
            work: UnsafeCell::new(&|_worker| ()),
            parked: (0..others).map(|_| Apart::default()).collect(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        // Built first, so that its drop ends the threads that there are if the system refuses one.
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(others),
            turn: Mutex::new(()),
        };
        for worker in 1..=others {
            let shared = Arc::clone(&pool.shared);
            let thread = thread::Builder::new()
                .name(format!("model-{worker}"))
                .spawn(move || shared.work_until_stopped(worker))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work(worker)` once on every worker, with the numbers `0..threads()`, at the same time.
    ///
    /// # Panics
    /// `work` panics on a worker: the others finish, then the panic goes on here. Or the pool's own work calls this.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            work(0);
        } else {
            self.launch(work, self.threads.len(), true);
        }
    }

    /// Calls `work(task)` once for each of `0..tasks`, on whichever workers are free; on the caller alone if there is
    /// one task or one thread.
    ///
    /// # Panics
    /// `work` panics: that worker takes no further task, the others go on, then the panic goes on here. Or the pool's
    /// own work calls this.
    pub fn for_each(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        self.for_each_on(tasks, &|_worker, task| work(task));
    }

    /// As [`Pool::for_each`], telling the work which worker it runs on, as `work(worker, task)`: what belongs to one
    /// worker is used by one task at a time.
    pub(crate) fn for_each_on(&self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.threads.is_empty() {
            (0..tasks).for_each(|task| work(0, task));
            return;
        }
        let next = AtomicUsize::new(0);
        let share = |worker: usize| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                work(worker, task);
            }
        };
        self.launch(&share, tasks - 1, false);
    }

    /// Opens a job, wakes up to `wanted` parked workers, does the caller's share, waits for those inside.
    /// `everybody`: waits until all workers have entered.
    fn launch(&self, work: Work<'_>, wanted: usize, everybody: bool) {
        let turn = self.take_turn();
        let shared = &*self.shared;
        *lock(&shared.caller) = Some(thread::current());
        // SAFETY: only the lifetime is dropped. Workers follow the pointer while they are inside of this job, and this
        // function neither returns nor unwinds before the job is closed and nobody is inside (`Shared::close`), while
        // its argument lives.
        let erased = unsafe { std::mem::transmute::<Work<'_>, ErasedWork>(work) };
        // SAFETY: the last job is closed and nobody is inside of it, and `turn` keeps other callers out.
        unsafe { *shared.work.get() = erased };
        let state = &shared.state.0;
        state.store(word::next(state.load(Ordering::Relaxed)), Ordering::SeqCst);
        let parked = self.threads.iter().zip(&shared.parked);
        for (thread, _) in parked
            .filter(|(_, parked)| parked.0.load(Ordering::SeqCst))
            .take(wanted)
        {
            thread.thread().unpark();
        }
        shared.share(work, 0);
        shared.close(if everybody { self.threads.len() as u64 } else { 0 });
        let panic = lock(&shared.panic).take();
        // Before the turn passes on: whoever finds itself named here is inside of its own job.
        *lock(&shared.caller) = None;
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Waits for other callers' jobs to end. A job that waited for itself would wait for ever, so it is refused.
    fn take_turn(&self) -> MutexGuard<'_, ()> {
        if let Ok(turn) = self.turn.try_lock() {
            return turn;
        }
        let me = thread::current().id();
        let is_mine = |thread: &Thread| thread.id() == me;
        let nested =
            self.threads.iter().any(|t| is_mine(t.thread())) || lock(&self.shared.caller).as_ref().is_some_and(is_mine);
        assert!(!nested, "a job of this pool dispatched another job on it");
        lock(&self.turn)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(word::STOP, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A worker catches what its work throws, so it has nothing to tell.
            let _ended = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// A thread's life.
    fn work_until_stopped(&self, worker: usize) {
        let mut last = 0;
        while let Some(epoch) = self.enter(worker, last) {
            last = epoch;
            // SAFETY: this worker is inside of a job, whose work was written before it was opened; the caller keeps it
            // alive until this worker has left.
            let work = unsafe { &**self.work.get() };
            self.share(work, worker);
            self.leave();
        }
    }

    /// Waits for a job after number `last` and enters it; `None`: the pool ends.
    fn enter(&self, worker: usize, last: u32) -> Option<u32> {
        let parked = &self.parked[worker - 1].0;
        let mut waiter = Waiter::default();
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if state & word::STOP != 0 {
                return None;
            }
            if word::epoch(state) != last && state & word::CLOSED == 0 {
                let inside = state + word::ENTERED + word::ACTIVE;
                let entered = self
                    .state
                    .0
                    .compare_exchange_weak(state, inside, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    return Some(word::epoch(state));
                }
            } else if !waiter.wait() {
                // Either this thread sees the next job here, or its caller sees the flag and unparks: both sides write
                // first and then read, in the one order of all `SeqCst` operations.
                parked.store(true, Ordering::SeqCst);
                if self.state.0.load(Ordering::SeqCst) == state {
                    thread::park();
                }
                parked.store(false, Ordering::SeqCst);
                waiter = Waiter::default();
            }
        }
    }

    fn leave(&self) {
        let before = self.state.0.fetch_sub(word::ACTIVE, Ordering::SeqCst);
        if word::active(before) == 1 && before & word::CALLER_PARKS != 0 {
            // The caller may have seen the count already and be gone, or another have taken its place: then this is
            // one round more in its loop.
            if let Some(caller) = lock(&self.caller).as_ref() {
                caller.unpark();
            }
        }
    }

    /// One worker's share of a job. A panic is kept for the caller.
    fn share(&self, work: Work<'_>, worker: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(worker))) {
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// Waits until `needed` workers have entered, then lets nobody else in and waits until nobody is inside.
    fn close(&self, needed: u64) {
        let mut waiter = Waiter::default();
        let mut state = self.state.0.load(Ordering::Acquire);
        loop {
            if word::entered(state) >= needed && state & word::CLOSED == 0 {
                state = self.state.0.fetch_or(word::CLOSED, Ordering::AcqRel) | word::CLOSED;
            }
            if state & word::CLOSED != 0 && word::active(state) == 0 {
                return;
            }
            if !waiter.wait() {
                // As in `enter`: this is one atomic operation, so either it sees the last worker gone, or that worker
                // sees the flag.
                state = self.state.0.fetch_or(word::CALLER_PARKS, Ordering::SeqCst);
                if word::active(state) != 0 {
                    thread::park();
                } else {
                    thread::yield_now();
                }
            }
            state = self.state.0.load(Ordering::Acquire);
        }
    }
}

/// The locks here guard single assignments, so a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a wait begins: spinning, then yielding.
#[derive(Default)]
struct Waiter {
    rounds: u32,
}

impl Waiter {
    /// Waits a moment; `false`: it has waited long enough to park.
    fn wait(&mut self) -> bool {
        self.rounds += 1;
        if self.rounds <= SPINS {
            hint::spin_loop();
        } else if self.rounds <= SPINS + YIELDS {
            thread::yield_now();
        } else {
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests;
