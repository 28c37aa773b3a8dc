//! The task: gives the machine its clock, its network and its handle's wishes.

use std::{future::Future, mem, pin::Pin, sync::Arc, time::Duration};

use chrono::Utc;
use shared_contract::{DropReason, HeartbeatAck, HeartbeatPayload, QueenId, Stamp};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::{
    Beat, ClientState, Error, Machine, Options, Sequence, Source, dropped::remedy, machine::GOODBYE_LIMIT,
    transport::Transport,
};

/// What the handles want. Counters, so that nothing is queued and nothing is missed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Commands {
    pub(crate) beats: u64,
    pub(crate) pulls: u64,
    pub(crate) goodbye: bool,
}

/// What the handles see.
pub(crate) struct Status {
    pub(crate) state: watch::Sender<ClientState>,
    pub(crate) queen: watch::Sender<Option<QueenId>>,
    pub(crate) last_error: watch::Sender<Option<Arc<Error>>>,
    pub(crate) last_drop: watch::Sender<Option<DropReason>>,
}

type Answer = Pin<Box<dyn Future<Output = Result<HeartbeatAck, Error>> + Send>>;

struct InFlight<T> {
    incarnation: u64,
    payload: T,
    answer: Answer,
}

pub(crate) struct Driver<T, X> {
    queen_url: String,
    sequence: Arc<Sequence>,
    machine: Machine,
    transport: Arc<X>,
    source: Arc<dyn Source<T>>,
    status: Status,
    /// Commands already carried out.
    done: Commands,
    in_flight: Option<InFlight<T>>,
    /// She took the sender for gone, and has taken no beat since.
    is_taken_for_gone: bool,
}

impl<T: HeartbeatPayload, X: Transport> Driver<T, X> {
    pub(crate) fn new(options: &Options, transport: X, source: Arc<dyn Source<T>>, status: Status) -> Self {
        Self {
            queen_url: options.queen_url.clone(),
            sequence: Arc::clone(&options.sequence),
            machine: Machine::drawing_from(
                Arc::clone(&options.sequence),
                options.timing,
                options.seed,
                Instant::now().into_std(),
            ),
            transport: Arc::new(transport),
            source,
            status,
            done: Commands::default(),
            in_flight: None,
            is_taken_for_gone: false,
        }
    }

    pub(crate) async fn run(self, wanted: watch::Receiver<Commands>) {
        let span = info_span!("heartbeat", queen = %self.queen_url);
        self.beat_until_goodbye(wanted).instrument(span).await;
    }

    async fn beat_until_goodbye(mut self, mut wanted: watch::Receiver<Commands>) {
        loop {
            let commands = *wanted.borrow_and_update();
            if commands.goodbye {
                return self.say_goodbye().await;
            }
            self.obey(commands);
            if let Some(beat) = self.machine.poll(Instant::now().into_std()) {
                self.in_flight = Some(self.send(beat));
            }
            self.publish_state();
            let due = self.machine.due().map(Instant::from_std);
            tokio::select! {
                biased;
                changed = wanted.changed() => if changed.is_err() {
                    debug!("nobody holds the client any more, it ends");
                    return;
                },
                answer = answer_of(&mut self.in_flight) => self.settle(answer),
                () = sleep_to(due) => {}
            }
        }
    }

    fn obey(&mut self, commands: Commands) {
        let done = mem::replace(&mut self.done, commands);
        if commands.beats != done.beats {
            self.machine.beat_now();
        }
        if commands.pulls != done.pulls && self.machine.discovered_by_pull() {
            self.in_flight = None;
        }
    }

    fn send(&self, beat: Beat) -> InFlight<T> {
        let mut payload = self.source.build(beat.delivery);
        payload.stamp(Stamp {
            incarnation: beat.incarnation,
            seq: beat.seq,
            timestamp: Utc::now(),
        });
        let body = serde_json::to_vec(&payload).map_err(|error| Error::Encode(error.to_string()));
        let transport = Arc::clone(&self.transport);
        let answer = Box::pin(async move {
            let answer = timeout(beat.limit, transport.send(body?)).await;
            answer.unwrap_or(Err(Error::TimedOut(beat.limit)))
        });
        InFlight {
            incarnation: beat.incarnation,
            payload,
            answer,
        }
    }

    /// Takes the end of the beat in flight.
    fn settle(&mut self, answer: Result<HeartbeatAck, Error>) {
        let Some(in_flight) = self.in_flight.take() else { return };
        let now = Instant::now().into_std();
        match answer {
            Ok(ack) => {
                self.machine.acknowledged(now, &ack);
                // Of a duplicate the queen has the first copy; what she did not take is still to be said.
                if matches!(ack.dropped, None | Some(DropReason::Duplicate)) {
                    self.source.delivered(&in_flight.payload, &ack);
                }
                let is_outrun = in_flight.incarnation < self.sequence.incarnation();
                self.note_drop(ack.dropped, is_outrun);
                self.status.last_error.send_replace(None);
                self.publish_queen(ack.queen_id);
            }
            Err(error) => {
                self.machine.failed(now);
                self.log_once(&error);
                self.status.last_error.send_replace(Some(Arc::new(error)));
                self.publish_queen(None);
            }
        }
    }

    /// One line for each change of error: a queen that stays away for a night must not fill a disk.
    fn log_once(&self, error: &Error) {
        if self.status.last_error.borrow().as_deref() == Some(error) {
            debug!(%error, "the queen is still not found");
        } else if error.needs_a_person() {
            error!(%error, "the queen refuses the heartbeat, the client goes on trying");
        } else {
            warn!(%error, "no acknowledgement from the queen, the client goes on trying");
        }
    }

    /// One line for each change of the queen's mind. `is_outrun`: the sender has gone on under a newer incarnation since the
    /// beat was drawn.
    fn note_drop(&mut self, dropped: Option<DropReason>, is_outrun: bool) {
        // The network's doing, or our own, which says nothing of how she takes this sender.
        let is_late = match dropped {
            Some(DropReason::Duplicate | DropReason::Reordered) => true,
            Some(DropReason::OlderIncarnation) => is_outrun,
            _ => false,
        };
        if is_late {
            debug!(reason = ?dropped, "the heartbeat came twice or was outrun by a newer one");
            return;
        }
        let is_gone = dropped == Some(DropReason::Departed);
        let was_gone = mem::replace(&mut self.is_taken_for_gone, is_gone);
        if is_gone && !was_gone {
            info!("the queen took this sender for gone, it goes on under a new incarnation");
            return;
        }
        if !self
            .status
            .last_drop
            .send_if_modified(|last| replace_if_other(last, dropped))
        {
            return;
        }
        match dropped {
            Some(reason) => warn!(%reason, remedy = remedy(reason), "the queen drops the heartbeats"),
            None => info!("the queen takes the heartbeats again"),
        }
    }

    fn publish_queen(&self, queen: Option<QueenId>) {
        self.status.queen.send_if_modified(|last| replace_if_other(last, queen));
    }

    fn publish_state(&self) {
        let state = self.machine.state();
        let from = *self.status.state.borrow();
        if from == state {
            return;
        }
        match state {
            ClientState::Discovered => info!(%from, "the queen is found"),
            _ => debug!(%from, to = %state, "the heartbeat's state changed"),
        }
        self.status.state.send_replace(state);
    }

    /// A beat in flight gets half of the time to arrive first: overtaken by the goodbye, it would bring the sender back.
    async fn say_goodbye(mut self) {
        let last = async {
            let _ = timeout(GOODBYE_LIMIT / 2, answer_if_any(&mut self.in_flight)).await;
            self.in_flight = None;
            let beat = self.machine.goodbye();
            self.send(beat).answer.await
        };
        let limit: Duration = GOODBYE_LIMIT;
        match timeout(limit, last).await.unwrap_or(Err(Error::TimedOut(limit))) {
            Ok(_) => debug!("said goodbye to the queen"),
            Err(error) => info!(%error, "the queen was not told goodbye, she will notice the silence"),
        }
    }
}

fn replace_if_other<T: PartialEq>(current: &mut T, new: T) -> bool {
    let is_other = *current != new;
    *current = new;
    is_other
}

async fn answer_if_any<T>(in_flight: &mut Option<InFlight<T>>) {
    if let Some(in_flight) = in_flight {
        let _ = (&mut in_flight.answer).await;
    }
}

/// Never ends while nothing is in flight.
async fn answer_of<T>(in_flight: &mut Option<InFlight<T>>) -> Result<HeartbeatAck, Error> {
    match in_flight {
        Some(in_flight) => (&mut in_flight.answer).await,
        None => std::future::pending().await,
    }
}

/// Never ends without a deadline.
async fn sleep_to(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
