//! A disk that fills up in the middle of a download.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{Fault, Server, noise, options, pull, sha256, span};
use crate::{ModelRef, ModelStore, StoreError};

const DISK: &str = "MODEL_STORE_TEST_DISK";
const OTHER: &str = "tests::full_disk::on_a_disk_of_8_mib";

#[test]
fn what_came_before_the_disk_was_full_is_kept_and_the_models_folder_is_named() {
    let disk = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=8m none \"${DISK}\" && exec \"$@\"");
    let run = |program: &Path, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
        command.arg(program).args(args).env(DISK, disk.path()).output()
    };
    if !run(Path::new("true"), &[]).is_ok_and(|tried| tried.status.success()) {
        println!("skipped: no disk can be mounted here (it needs user namespaces)");
        return;
    }
    let this = std::env::current_exe().unwrap();
    let output = run(&this, &["--ignored", "--exact", OTHER]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("1 passed"),
        "{output:?}"
    );
}

#[tokio::test]
#[ignore = "another test runs it where the disk is small"]
async fn on_a_disk_of_8_mib() {
    let root = PathBuf::from(std::env::var_os(DISK).unwrap());
    let content = noise(9 << 20, 1);
    let server = Server::start().await;
    server.file("/files/m.gguf", &content, None);
    server.refuse_head();
    // Only bytes tell how large it is.
    server.fault(Fault::NoLength);
    let reference: ModelRef = format!("{}/files/m.gguf#sha256={}", server.url, sha256(&content))
        .parse()
        .unwrap();
    let store = ModelStore::open_with(&root, options()).unwrap();
    let error = pull(&store, &reference).await.unwrap_err();
    let StoreError::DiskFull { path, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(path, &root, "{error}");

    // Now the size is known, and what is missing does not fit.
    let error = pull(&store, &reference).await.unwrap_err();
    let StoreError::NoSpace { path, needed_bytes, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(path, &root);
    assert!(
        *needed_bytes < 3 << 20,
        "{needed_bytes} of {} bytes are missing",
        content.len()
    );
    let asked = server.seen().pop().unwrap().range;
    assert!(span(&asked.unwrap()).0 > 6 << 20, "it went on where the disk was full");
}
