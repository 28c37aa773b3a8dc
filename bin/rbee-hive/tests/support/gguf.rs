//! Small GGUF files whose headers promise whatever a test needs.

/// What a header says of its model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    /// Elements of a row between the layers; those of a head follow from it.
    pub(crate) width: u32,
    pub(crate) context_length: u32,
}

/// A model that takes next to nothing.
pub(crate) const SMALL: Header = Header {
    layers: 2,
    heads: 4,
    width: 64,
    context_length: 2048,
};

/// One whose KV cache takes megabytes for each token.
pub(crate) const GREEDY: Header = Header {
    layers: 128,
    heads: 64,
    width: 64 * 128,
    context_length: 10_000_000,
};

/// A file with the header of [`SMALL`].
pub(crate) fn bytes() -> Vec<u8> {
    with(SMALL)
}

/// A file with this header, one tensor and no tokenizer.
pub(crate) fn with(header: Header) -> Vec<u8> {
    let numbers = [
        ("llama.block_count", header.layers),
        ("llama.attention.head_count", header.heads),
        ("llama.attention.head_count_kv", header.heads),
        ("llama.embedding_length", header.width),
        ("llama.feed_forward_length", header.width),
        ("llama.context_length", header.context_length),
    ];
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    let (tensors, values) = (1_u64, numbers.len() as u64 + 1);
    file.extend(tensors.to_le_bytes());
    file.extend(values.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(STRING.to_le_bytes());
    text(&mut file, "llama");
    for (key, number) in numbers {
        text(&mut file, key);
        file.extend(U32.to_le_bytes());
        file.extend(number.to_le_bytes());
    }
    let (rows, width) = (8_u64, u64::from(header.width));
    text(&mut file, "token_embd.weight");
    file.extend(2_u32.to_le_bytes());
    file.extend(width.to_le_bytes());
    file.extend(rows.to_le_bytes());
    file.extend(F32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.resize(file.len() + (width * rows * 4) as usize, 0);
    file
}

/// Type numbers of metadata values, and the one of a tensor of f32; see ggml's "GGUF" description.
const U32: u32 = 4;
const STRING: u32 = 8;
const F32: u32 = 0;
const ALIGNMENT: usize = 32;

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}
