//! Random loads, turn by turn without a thread: whatever arrives, leaves and shares, each answer is the one it would be
//! alone, and the books of the KV blocks are right after every turn.

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::StepLoop;
use crate::{
    Embedding, Engine, EngineHandle, EngineOptions, Event, Generation, KvLayout, Model, ModelError, Output, Pooling,
    Request, Sampling, StepInput, Token, TokenLogprobs,
};
use pages::{Pages, Part};

#[path = "../../tests/engine/pages.rs"]
mod pages;

/// Tokens that texts and answers are made of.
const WORDS: u32 = 60;
/// Request `n` ends its prompt with token `WORDS + n`.
const REQUESTS: u32 = 40;
const VOCAB_SIZE: usize = (WORDS + REQUESTS) as usize;
const CONTEXT_LENGTH: usize = 80;
const BLOCK_TOKENS: usize = 4;

/// A model whose output depends on all tokens of a sequence, as its blocks remember them.
struct SimulatedModel {
    layout: KvLayout,
    pages: Pages,
    /// The requests whose last prompt token was run.
    seen: Arc<Mutex<Vec<u32>>>,
}

impl Model for SimulatedModel {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn hidden_size(&self) -> usize {
        3
    }

    fn context_length(&self) -> usize {
        CONTEXT_LENGTH
    }

    fn is_end(&self, token: u32) -> bool {
        token == 0
    }

    fn kv_layout(&self) -> KvLayout {
        self.layout
    }

    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError> {
        let parts: Vec<Part<'_>> = inputs
            .iter()
            .map(|input| (input.tokens, input.position, input.blocks))
            .collect();
        rows.clear();
        for (input, tokens) in inputs.iter().zip(self.pages.step(&parts)) {
            let markers = input.tokens.iter().filter_map(|token| token.checked_sub(WORDS));
            self.seen.lock().unwrap().extend(markers);
            let range = match input.output {
                Output::Nothing => continue,
                Output::Last => tokens.len()..tokens.len() + 1,
                Output::All | Output::Hidden => input.position + 1..tokens.len() + 1,
            };
            for end in range {
                rows.extend(row(
                    &tokens[..end],
                    if input.output == Output::Hidden { 3 } else { VOCAB_SIZE },
                ));
            }
        }
        Ok(())
    }
}

/// Values that look random and depend on all tokens. The markers are never probable.
fn row(tokens: &[u32], width: usize) -> impl Iterator<Item = f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    (0..width).map(move |place| {
        hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let value = f32::from((hash >> 48) as u16) / 16_384.0;
        if place < WORDS as usize { value } else { value - 100.0 }
    })
}

/// What a request wants.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Greedy,
    Sampled,
    Echo,
    Embed,
}

#[derive(Debug, Clone)]
struct Order {
    kind: Kind,
    prompt: Vec<u32>,
    max_tokens: usize,
}

#[derive(Debug, Clone)]
enum Act {
    /// A prompt: so much of one of two texts, then so many tokens of its own.
    Submit {
        kind: Kind,
        text: u32,
        shared: usize,
        own: usize,
        max_tokens: usize,
    },
    Cancel(prop::sample::Index),
    Read(prop::sample::Index),
    Turns(usize),
}

enum Reader {
    Answer(Box<Generation>, Answer),
    Embedding(Embedding),
    Done(Answer),
}

/// All that a request was told.
#[derive(Debug, Clone, PartialEq, Default)]
struct Answer {
    tokens: Vec<Token>,
    prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    end: Option<Event>,
    embedding: Option<Vec<f32>>,
}

fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl Reader {
    fn submit(engine: &EngineHandle, order: &Order) -> Option<Self> {
        let prompt = order.prompt.clone();
        if let Kind::Embed = order.kind {
            return engine.embed(prompt, Pooling::Mean).ok().map(Self::Embedding);
        }
        let sampling = match order.kind {
            Kind::Sampled => Sampling {
                temperature: 0.8,
                top_p: 0.9,
                repetition_penalty: 1.1,
                frequency_penalty: 0.2,
                seed: Some(u64::from(prompt[prompt.len() - 1])),
                ..Sampling::default()
            },
            _ => Sampling::default(),
        };
        let request = Request {
            prompt,
            max_tokens: order.max_tokens,
            sampling,
            logprobs: Some(1),
            prompt_logprobs: matches!(order.kind, Kind::Echo),
            constraint: None,
            resumed: 0,
        };
        let generation = engine.submit(request).ok()?;
        Some(Self::Answer(Box::new(generation), Answer::default()))
    }

    /// Takes what is there.
    fn read(&mut self) {
        let done = match self {
            Self::Done(_) => return,
            Self::Embedding(embedding) => poll(Pin::new(embedding)).map(|values| Answer {
                embedding: Some(values.unwrap()),
                ..Answer::default()
            }),
            Self::Answer(generation, answer) => loop {
                let event = poll(pin!(generation.next()));
                match event {
                    Some(Some(Event::Token(token))) => answer.tokens.push(token),
                    Some(end) => {
                        answer.end = end;
                        answer.prompt_logprobs = generation.prompt_logprobs().map(<[_]>::to_vec);
                        break Some(answer.clone());
                    }
                    None => break None,
                }
            },
        };
        if let Some(answer) = done {
            *self = Self::Done(answer);
        }
    }
}

/// An engine whose turns the test takes.
struct Simulation {
    engine: EngineHandle,
    step_loop: StepLoop,
    seen: Arc<Mutex<Vec<u32>>>,
    /// Requests in the order of arrival, without those that left while they waited.
    arrived: Vec<u32>,
}

impl Simulation {
    fn new(blocks: usize, slots: usize, prefill_chunk: usize, prefix_cache: bool) -> Self {
        let layout = KvLayout {
            block_tokens: BLOCK_TOKENS,
            blocks,
        };
        let seen = Arc::default();
        let model = SimulatedModel {
            layout,
            pages: Pages::new(BLOCK_TOKENS, blocks),
            seen: Arc::clone(&seen),
        };
        let at_least_one = |number| NonZeroUsize::new(number).unwrap();
        let options = EngineOptions {
            max_sequences: at_least_one(slots),
            prefill_chunk: at_least_one(prefill_chunk),
            queue_limit: REQUESTS as usize,
            token_buffer: at_least_one(3),
            prefix_cache,
        };
        let (engine, step_loop) = Engine::prepare(Box::new(model), options);
        Self {
            engine,
            step_loop,
            seen,
            arrived: Vec::new(),
        }
    }

    /// Returns whether anything was run.
    fn turn(&mut self) -> bool {
        let has_run = self.step_loop.turn().unwrap();
        self.step_loop.kv.assert_consistent();
        let load = self.engine.load();
        assert!(load.kv_used_tokens <= load.kv_reserved_tokens && load.kv_reserved_tokens <= load.kv_total_tokens);
        // Who waits came last.
        let admitted = self.arrived.len() - load.waiting;
        for request in self.seen.lock().unwrap().drain(..) {
            let place = self.arrived.iter().position(|&other| other == request).unwrap();
            assert!(place < admitted, "request {request} has overtaken others");
        }
        has_run
    }

    fn cancel(&mut self, number: u32, reader: Reader) {
        let waiting = self.engine.load().waiting;
        drop(reader);
        if self.engine.load().waiting < waiting {
            self.arrived.retain(|&other| other != number);
        }
    }
}

/// What a request is told when there is nothing else.
fn alone(order: &Order) -> Answer {
    let mut simulation = Simulation::new(CONTEXT_LENGTH / BLOCK_TOKENS, 1, CONTEXT_LENGTH, false);
    let number = order.prompt[order.prompt.len() - 1] - WORDS;
    simulation.arrived.push(number);
    let mut reader = Reader::submit(&simulation.engine, order).unwrap();
    loop {
        simulation.turn();
        reader.read();
        if let Reader::Done(answer) = reader {
            return answer;
        }
    }
}

fn any_act() -> impl Strategy<Value = Act> {
    let kind = prop_oneof![
        4 => Just(Kind::Greedy),
        3 => Just(Kind::Sampled),
        1 => Just(Kind::Echo),
        1 => Just(Kind::Embed)
    ];
    prop_oneof![
        4 => (kind, 0..2_u32, 0..40_usize, 0..20_usize, 0..20_usize).prop_map(
            |(kind, text, shared, own, max_tokens)| Act::Submit { kind, text, shared, own, max_tokens }
        ),
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        2 => any::<prop::sample::Index>().prop_map(Act::Read),
        3 => (1..6_usize).prop_map(Act::Turns),
    ]
}

fn order(number: u32, act: &Act) -> Option<Order> {
    let &Act::Submit {
        kind,
        text,
        shared,
        own,
        max_tokens,
    } = act
    else {
        return None;
    };
    let shared = (0..shared as u32).map(|place| 1 + (place * 7 + text * 31) % (WORDS - 1));
    let own = (0..own as u32).map(|place| 1 + (place * 11 + number * 17) % (WORDS - 1));
    Some(Order {
        kind,
        prompt: shared.chain(own).chain([WORDS + number]).collect(),
        max_tokens,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_answer_is_the_one_it_would_be_alone(
        acts in prop::collection::vec(any_act(), 1..80),
        blocks in 20..40_usize,
        slots in 1..6_usize,
        prefill_chunk in 1..24_usize,
        prefix_cache in prop::bool::weighted(0.8),
    ) {
        let mut simulation = Simulation::new(blocks, slots, prefill_chunk, prefix_cache);
        let mut orders: Vec<Order> = Vec::new();
        let mut readers: Vec<(u32, Reader)> = Vec::new();
        for act in &acts {
            match act {
                Act::Submit { .. } => {
                    let number = orders.len() as u32;
                    if let Some(order) = order(number, act).filter(|_| number < REQUESTS) {
                        readers.push((number, Reader::submit(&simulation.engine, &order).unwrap()));
                        simulation.arrived.push(number);
                        orders.push(order);
                    }
                }
                Act::Cancel(index) if !readers.is_empty() => {
                    let (number, reader) = readers.remove(index.index(readers.len()));
                    simulation.cancel(number, reader);
                }
                Act::Read(index) if !readers.is_empty() => {
                    let place = index.index(readers.len());
                    readers[place].1.read();
                }
                Act::Turns(count) => (0..*count).for_each(|_| { simulation.turn(); }),
                Act::Cancel(_) | Act::Read(_) => {}
            }
        }
        // While someone reads, every turn runs something: nobody starves.
        loop {
            let has_run = simulation.turn();
            readers.iter_mut().for_each(|(_, reader)| reader.read());
            if readers.iter().all(|(_, reader)| matches!(reader, Reader::Done(_))) {
                break;
            }
            // A turn in which nothing ran may have told someone, or the readers had left no room before it.
            prop_assert!(has_run || simulation.turn(), "there is work, and nothing is done");
        }
        simulation.turn();
        let load = simulation.engine.load();
        prop_assert_eq!((load.running, load.waiting, load.kv_used_tokens, load.kv_reserved_tokens), (0, 0, 0, 0));
        for (number, reader) in readers {
            let Reader::Done(answer) = reader else { unreachable!() };
            prop_assert_eq!(answer, alone(&orders[number as usize]), "request {}", number);
        }
    }
}
