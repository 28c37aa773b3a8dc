use batch_engine::{Output, StepInput};
use candle_core::quantized::GgmlDType;

use super::tiny::{Tiny, VOCAB, WIDTH};
use super::{BLOCKS, Sequence, assert_close, feed, fused, reference, text};
use crate::Family;

/// Every family, with halves and with quantised weights: the two kinds of products.
fn models() -> impl Iterator<Item = Tiny> {
    let dtypes = [GgmlDType::F32, GgmlDType::Q4_0];
    let all = Family::ALL
        .into_iter()
        .flat_map(move |family| dtypes.map(|dtype| (family, dtype)));
    all.map(|(family, dtype)| Tiny::of(family).with_matrices(dtype))
}

#[test]
fn a_sequence_s_logits_are_the_same_bit_for_bit_alone_and_in_any_batch() {
    for tiny in models() {
        let mut model = fused(&tiny);
        let prompts = [text(20, 1), text(1, 2), text(260, 3), text(7, 4)];
        let alone: Vec<_> = prompts
            .iter()
            .map(|prompt| feed(&mut *model, &[prompt, &[1], &[2]]))
            .collect();
        let mut sequences: Vec<_> = (0..4).map(|i| Sequence::new(i * 10..(i + 1) * 10)).collect();
        for (round, next) in [None, Some([1u32]), Some([2])].iter().enumerate() {
            let tokens = prompts
                .each_ref()
                .map(|prompt| next.as_ref().map_or(prompt.as_slice(), |next| next));
            let inputs = sequences.iter().zip(tokens);
            let inputs: Vec<_> = inputs
                .map(|(sequence, tokens)| sequence.input(tokens, Output::Last))
                .collect();
            let mut together = Vec::new();
            model.step(&inputs, &mut together).expect("a step");
            let expected: Vec<f32> = alone.iter().flat_map(|rounds| rounds[round].iter().copied()).collect();
            assert!(together == expected, "round {round}");
            for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
                sequence.len += tokens.len();
            }
        }
    }
}

#[test]
fn a_prompt_in_pieces_gives_the_same_logits_bit_for_bit() {
    for tiny in models() {
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
fn candle_s_operations_give_the_same_in_pieces_and_in_batches_but_for_rounding() {
    for family in Family::ALL {
        let mut model = reference(&Tiny::of(family));
        let (prompt, other) = (text(100, 5), text(40, 6));
        let at_once = feed(&mut *model, &[&prompt]);
        let pieces = feed(&mut *model, &[&prompt[..33], &prompt[33..99], &prompt[99..]]);
        assert_close(&pieces[2], &at_once[0], 1e-4, "in pieces");
        let sequences = [Sequence::new(0..4), Sequence::new(4..8)];
        let inputs = [
            sequences[0].input(&other, Output::Last),
            sequences[1].input(&prompt, Output::Last),
        ];
        let mut together = Vec::new();
        model.step(&inputs, &mut together).expect("a step");
        assert_close(&together[VOCAB..], &at_once[0], 1e-4, "in a batch");
    }
}

#[test]
fn a_sequence_s_blocks_may_lie_anywhere_in_any_order() {
    for tiny in models() {
        for mut model in [fused(&tiny), reference(&tiny)] {
            let prompt = text(200, 7);
            let mut straight = Sequence::new(0..7);
            let mut scattered = Sequence::new([63, 8, 41, 9, 40, 62, 17]);
            for piece in [&prompt[..150], &prompt[150..151], &prompt[151..]] {
                let expected = straight.feed(&mut *model, piece, Output::Last);
                assert!(scattered.feed(&mut *model, piece, Output::Last) == expected);
            }
        }
    }
}

#[test]
fn a_sequence_goes_on_from_blocks_that_another_one_wrote() {
    for tiny in models() {
        let mut model = fused(&tiny);
        let (prefix, rest) = (text(64, 8), text(30, 9));
        let mut first = Sequence::new(0..10);
        first.feed(&mut *model, &prefix, Output::Nothing);
        let expected = first.feed(&mut *model, &rest, Output::Last);
        let mut second = Sequence::new([0, 1, 50]);
        second.len = prefix.len();
        assert!(second.feed(&mut *model, &rest, Output::Last) == expected);
    }
}

#[test]
fn each_input_gets_the_rows_it_asks_for_in_order() {
    for mut model in [fused(&Tiny::of(Family::Qwen3)), reference(&Tiny::of(Family::Qwen3))] {
        let tokens = text(5, 1);
        let last = Sequence::new([0]).feed(&mut *model, &tokens, Output::Last);
        let all = Sequence::new([1]).feed(&mut *model, &tokens, Output::All);
        let hidden = Sequence::new([2]).feed(&mut *model, &tokens, Output::Hidden);
        assert_eq!((model.vocab_size(), model.hidden_size()), (VOCAB, WIDTH));
        assert_eq!((all.len(), hidden.len()), (5 * VOCAB, 5 * WIDTH));
        assert_close(&all[4 * VOCAB..], &last, 1e-4, "the last of all");
        let sequences = [0, 1, 2, 3].map(|block| Sequence::new([block]));
        let outputs = [Output::Hidden, Output::Nothing, Output::Last, Output::All];
        let inputs: Vec<_> = sequences
            .iter()
            .zip(outputs)
            .map(|(sequence, output)| sequence.input(&tokens, output))
            .collect();
        let mut rows = vec![1.0];
        model.step(&inputs, &mut rows).expect("a step");
        assert_close(&rows, &[hidden, last, all].concat(), 1e-4, "all together");
        model.step(&inputs[1..2], &mut rows).expect("a step");
        assert!(rows.is_empty());
    }
}

#[test]
fn logits_are_the_hidden_state_times_the_head() {
    let tiny = Tiny::of(Family::Qwen3);
    let mut model = reference(&tiny);
    let hidden = Sequence::new([0]).feed(&mut *model, &[9, 8, 7], Output::Hidden);
    let logits = Sequence::new([1]).feed(&mut *model, &[9, 8, 7], Output::Last);
    let (_, _, head) = &tiny.tensors["token_embd.weight"];
    let hidden = &hidden[2 * WIDTH..];
    let dot = |row: &[f32]| row.iter().zip(hidden).map(|(w, x)| w * x).sum();
    let expected: Vec<f32> = head.chunks_exact(WIDTH).map(dot).collect();
    assert_close(&logits, &expected, 1e-5, "tied embeddings");
}

#[test]
fn a_step_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut model = fused(&Tiny::of(Family::Gemma3));
    let undisturbed = feed(&mut *model, &[&[1, 2], &[3]]);
    let mut sequence = Sequence::new([5]);
    let first = sequence.feed(&mut *model, &[1, 2], Output::Last);
    let beyond = [BLOCKS as u32];
    let long = vec![1; 31];
    let good = StepInput {
        tokens: &[3],
        position: 2,
        blocks: &[5],
        output: Output::Last,
    };
    let far = StepInput { position: 40, ..good };
    for (bad, reason) in [
        (vec![StepInput { tokens: &[], ..good }], "an input has no tokens"),
        (
            vec![StepInput { tokens: &[256], ..good }],
            "token 256 is not in the vocabulary of 256 tokens",
        ),
        (
            vec![StepInput { tokens: &long, ..good }],
            "a sequence of 33 tokens needs 2 blocks, its table has 1",
        ),
        (
            vec![StepInput {
                blocks: &beyond,
                ..good
            }],
            "block 64 is not one of the cache's 64 blocks",
        ),
        (
            vec![StepInput {
                position: usize::MAX,
                ..good
            }],
            "longer than the context of 600",
        ),
        (vec![good, good], "block 5 is in the step twice"),
        (
            vec![StepInput { blocks: &[5, 5], ..far }],
            "block 5 is in the step twice",
        ),
        (
            vec![good, StepInput { blocks: &[7, 5], ..far }],
            "block 5 is in the step twice",
        ),
    ] {
        let mut rows = Vec::new();
        let error = model.step(&bad, &mut rows).expect_err(reason);
        assert!(error.to_string().contains(reason), "{error}");
        assert!(rows.is_empty());
    }
    assert!([first, sequence.feed(&mut *model, &[3], Output::Last)] == undisturbed[..]);
}

#[test]
fn the_cache_is_laid_out_in_blocks_and_answers_end_with_the_tokens_that_the_file_names() {
    let model = fused(&Tiny::of(Family::Llama));
    let layout = model.kv_layout();
    assert_eq!((layout.block_tokens, layout.blocks), (32, BLOCKS));
    assert_eq!(model.context_length(), super::tiny::CONTEXT);
    assert!(model.is_end(3));
    assert!(!model.is_end(4));
}
