use super::*;

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn header(tensors: u64, values: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(values.to_le_bytes());
    rest.iter().for_each(|part| bytes.extend(*part));
    bytes
}

#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    match read(bytes, bytes.len()) {
        Err(Stop::Refused(error)) => error.to_string(),
        other => panic!("the header makes no sense, but {other:?}"),
    }
}

#[test]
fn a_file_may_promise_any_number_of_things_and_costs_only_what_it_has() {
    let endless = u64::MAX.to_le_bytes();
    for (tensors, values, rest) in [
        (u64::MAX, 0, vec![]),
        (0, u64::MAX, vec![]),
        (0, 1, vec![endless.to_vec()]),
        (0, 1, vec![string("k"), vec![9, 0, 0, 0, 8, 0, 0, 0], endless.to_vec()]),
        (0, 1, vec![string("k"), vec![9, 0, 0, 0, 12, 0, 0, 0], endless.to_vec()]),
    ] {
        let rest: Vec<&[u8]> = rest.iter().map(Vec::as_slice).collect();
        let error = refusal(&header(tensors, values, &rest));
        assert!(error.contains("its header is cut short"), "{error}");
    }
}

#[test]
fn more_entries_than_any_model_has_are_refused() {
    let flags: Vec<u8> = (0..=MAX_ENTRIES)
        .flat_map(|nth| [string(&nth.to_string()), vec![7, 0, 0, 0, 1]].concat())
        .collect();
    let error = refusal(&header(0, u64::MAX, &[&flags]));
    assert!(error.contains("more than 262144 values"), "{error}");
}

#[test]
fn what_is_in_a_header_twice_is_refused() {
    let value = [string("k"), vec![7, 0, 0, 0, 1]].concat();
    assert!(refusal(&header(0, 2, &[&value, &value])).contains("k is in its metadata twice"));
    let tensor = [string("t"), vec![1, 0, 0, 0], 4u64.to_le_bytes().to_vec(), vec![0; 12]].concat();
    assert!(refusal(&header(2, 0, &[&tensor, &tensor])).contains("tensor t is in it twice"));
}

#[test]
fn what_is_not_understood_is_named() {
    let tensor = [string("t"), vec![0, 0, 0, 0], vec![99, 0, 0, 0], vec![0; 8]].concat();
    assert_eq!(refusal(&header(1, 0, &[&tensor])), "tensor t has the unknown type 99");
    let value = [string("k"), vec![9, 0, 0, 0, 9, 0, 0, 0], vec![0; 8]].concat();
    assert_eq!(refusal(&header(0, 1, &[&value])), "its metadata has an array of arrays");
    assert!(refusal(b"GGUF\0\0\0\x03").contains("GGUF of version 50331648 is not supported"));
    let parts = [string("split.count"), vec![2, 0, 0, 0, 3, 0]].concat();
    assert!(refusal(&header(0, 1, &[&parts])).contains("one of 3 parts"));
}

/// A header with one text of so many bytes, and a number behind it.
fn long_header(text: usize) -> Vec<u8> {
    let text = [string("text"), vec![8, 0, 0, 0], string(&"x".repeat(text))].concat();
    let number = [string("number"), vec![4, 0, 0, 0, 7, 0, 0, 0]].concat();
    header(0, 2, &[&text, &number])
}

/// Counts what is read of it.
struct Counted<'a> {
    bytes: &'a [u8],
    read: &'a std::cell::Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(out)?;
        self.read.set(self.read.get() + count);
        Ok(count)
    }
}

#[test]
fn a_header_is_read_as_far_as_it_goes_and_the_weights_behind_it_are_not() {
    for text in [10, FIRST_READ - 1, 3 * FIRST_READ, 10 * FIRST_READ] {
        let mut file = long_header(text);
        let header = file.len();
        file.resize(header + 100 * FIRST_READ, 0);
        let read = std::cell::Cell::new(0);
        let counted = Counted {
            bytes: &file,
            read: &read,
        };
        let found = describe(counted, file.len()).expect("it can be read").expect("GGUF");
        let found = found.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.count("number"), Some(7));
        assert_eq!(found.string("text").map(str::len), Some(text));
        assert!(read.get() <= FIRST_READ.max(4 * header), "{} of {header}", read.get());
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_damaged() {
    let file = long_header(3 * FIRST_READ);
    for len in [10, FIRST_READ, 2 * FIRST_READ] {
        let found = describe(&file[..len], file.len())
            .expect("it can be read")
            .expect("GGUF");
        assert!(matches!(found, Err(FormatError::Damaged(_))), "{len}");
    }
}

#[test]
fn a_header_longer_than_any_is_refused_without_being_read() {
    let value = [string("k"), vec![9, 0, 0, 0, 0, 0, 0, 0]].concat();
    let len = 2 * MAX_HEADER as u64;
    let file = header(0, 1, &[&value, &len.to_le_bytes()]);
    // As if it were the beginning of a file that is large enough.
    let read = std::cell::Cell::new(0);
    let endless = Counted {
        bytes: &[0; 4 * FIRST_READ],
        read: &read,
    };
    let found = describe(file.as_slice().chain(endless), usize::MAX).expect("it can be read");
    let error = found.expect("GGUF").err().expect("too long").to_string();
    assert!(error.contains("longer than"), "{error}");
    assert!(read.get() <= FIRST_READ);
}
