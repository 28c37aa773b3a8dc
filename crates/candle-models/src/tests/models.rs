use batch_engine::{Model, SequenceId, StepInput};
use candle_core::Device;

use super::tiny::{CONTEXT, Tiny};
use crate::backend::tensor::Candle;
use crate::load::File;
use crate::{DeviceSpec, LoadOptions, load};

fn fused(tiny: &Tiny) -> Box<dyn Model> {
    with_kv_tokens(tiny, 2000)
}

fn with_kv_tokens(tiny: &Tiny, kv_tokens: usize) -> Box<dyn Model> {
    let (_folder, path) = tiny.write();
    let options = LoadOptions {
        kv_tokens: Some(kv_tokens),
        ..LoadOptions::new(DeviceSpec::Cpu)
    };
    load(&path, &options, &mut |_| {}).expect("a tiny model").model
}

/// The same by candle's own operations.
fn reference(tiny: &Tiny) -> Box<dyn Model> {
    let (_folder, path) = tiny.write();
    let options = LoadOptions::new(DeviceSpec::Cpu);
    let file = File::open(&path).expect("a tiny file");
    file.load_family(Candle::new(Device::Cpu), &options, &mut |_| {})
        .expect("a tiny model")
        .model
}

fn text(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (i * i * 7 + i * 13 + seed * 31) % 256)
        .collect()
}

fn step(model: &mut dyn Model, inputs: &[(SequenceId, &[u32])]) -> Vec<f32> {
    let inputs: Vec<_> = inputs
        .iter()
        .map(|&(sequence, tokens)| StepInput {
            sequence,
            tokens,
            wants_logits: true,
        })
        .collect();
    let mut logits = Vec::new();
    model.step(&inputs, &mut logits).expect("a step");
    logits
}

/// Logits after each piece of one sequence.
fn feed(model: &mut dyn Model, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let id = model.open(CONTEXT).expect("room");
    let logits = pieces.iter().map(|piece| step(model, &[(id, piece)])).collect();
    model.close(id);
    logits
}

#[test]
fn the_fused_path_computes_what_candle_computes() {
    for (family, tiny) in [("llama", Tiny::llama()), ("gemma3", Tiny::gemma3())] {
        let prompt = text(300, 1);
        // The prompt crosses a cache block and many windows; then single tokens follow, then a few more at once.
        let pieces = [&prompt[..270], &prompt[270..271], &prompt[271..272], &prompt[272..300]];
        let ours = feed(&mut *fused(&tiny), &pieces);
        let theirs = feed(&mut *reference(&tiny), &pieces);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let scale = theirs.iter().fold(0.0f32, |top, x| top.max(x.abs()));
            let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Weights and caches are f16 in one and f32 in the other.
            assert!(worst < 0.01 * scale, "{family}: off by {worst} of {scale}");
        }
    }
}

#[test]
fn a_sequence_s_logits_are_the_same_bit_for_bit_alone_and_in_any_batch() {
    for tiny in [Tiny::llama(), Tiny::gemma3()] {
        let mut model = fused(&tiny);
        let prompts = [text(20, 1), text(1, 2), text(260, 3), text(7, 4)];
        let alone: Vec<_> = prompts
            .iter()
            .map(|prompt| feed(&mut *model, &[prompt, &[1], &[2]]))
            .collect();
        let ids = prompts
            .each_ref()
            .map(|prompt| model.open(prompt.len() + 2).expect("room"));
        for (round, next) in [None, Some([1u32]), Some([2])].iter().enumerate() {
            let inputs: Vec<_> = ids
                .iter()
                .zip(&prompts)
                .map(|(&id, prompt)| (id, next.as_ref().map_or(prompt.as_slice(), |next| next)))
                .collect();
            let together = step(&mut *model, &inputs);
            let expected: Vec<f32> = alone.iter().flat_map(|rounds| rounds[round].iter().copied()).collect();
            assert!(together == expected, "round {round}");
        }
    }
}

#[test]
fn a_prompt_in_pieces_gives_the_same_logits_bit_for_bit() {
    for tiny in [Tiny::llama(), Tiny::gemma3()] {
        let mut model = fused(&tiny);
        let prompt = text(523, 5);
        let at_once = feed(&mut *model, &[&prompt]);
        let pieces = feed(
            &mut *model,
            &[&prompt[..1], &prompt[1..250], &prompt[250..522], &prompt[522..]],
        );
        assert!(at_once.last() == pieces.last());
    }
}

#[test]
fn only_wanted_logits_are_computed_in_the_order_of_the_inputs() {
    let mut model = fused(&Tiny::llama());
    let ids = [0; 3].map(|_| model.open(10).expect("room"));
    let inputs: Vec<_> = ids
        .iter()
        .zip([true, false, true])
        .map(|(&sequence, wants_logits)| StepInput {
            sequence,
            tokens: &[5, 6],
            wants_logits,
        })
        .collect();
    let mut logits = vec![1.0];
    model.step(&inputs, &mut logits).expect("a step");
    assert_eq!(logits.len(), 2 * model.vocab_size());
    assert!(logits[..256] == logits[256..], "the same tokens have the same logits");
    let silent = StepInput {
        wants_logits: false,
        ..inputs[1]
    };
    model.step(&[silent], &mut logits).expect("a step");
    assert!(logits.is_empty());
}

#[test]
fn room_is_promised_to_open_sequences_and_given_back_when_they_close() {
    let mut model = with_kv_tokens(&Tiny::llama(), 100);
    assert_eq!((model.kv_capacity(), model.context_length()), (100, 100));
    let first = model.open(60).expect("room");
    let error = model.open(41).expect_err("no room");
    assert_eq!(error.to_string(), "41 tokens do not fit: 40 of 100 are free");
    assert!(model.open(101).is_err(), "longer than the context");
    model.close(first);
    model.close(first);
    model.open(100).expect("all room is free again");
    assert!(model.open(1).is_err());
}

#[test]
fn a_step_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut model = fused(&Tiny::gemma3());
    let undisturbed = feed(&mut *model, &[&[1, 2], &[3]]);
    let id = model.open(3).expect("room");
    let first = step(&mut *model, &[(id, &[1, 2])]);
    let (ghost, mut logits) = (SequenceId(999), Vec::new());
    let inputs = |list: &[(SequenceId, &'static [u32])]| -> Vec<StepInput<'static>> {
        list.iter()
            .map(|&(sequence, tokens)| StepInput {
                sequence,
                tokens,
                wants_logits: true,
            })
            .collect()
    };
    for (bad, reason) in [
        (inputs(&[(ghost, &[1])]), "sequence 999 is not open"),
        (inputs(&[(id, &[])]), "has no tokens"),
        (inputs(&[(id, &[3, 4])]), "would grow beyond the 3 tokens"),
        (inputs(&[(id, &[256])]), "token 256 is not in the vocabulary"),
        (inputs(&[(id, &[3]), (id, &[3])]), "in the step twice"),
    ] {
        let error = model.step(&bad, &mut logits).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert!([first, step(&mut *model, &[(id, &[3])])] == undisturbed[..]);
}

#[test]
fn answers_end_with_the_tokens_that_the_file_names() {
    let model = fused(&Tiny::llama());
    assert!(model.is_end(3));
    assert!(!model.is_end(4));
}
