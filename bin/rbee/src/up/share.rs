//! `rbee up --share`: the secrets of a fleet whose owner chose none. They are made once and kept, so that hosts that joined
//! find their queen again after her restart.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use daemon::{Secret, state_folder};
use rand::RngExt;

use crate::cli::Global;

/// The file, in the folder of this `rbee up`; a shell can read it, too.
pub(super) const FILE: &str = "secrets.env";
const TOKEN: &str = "RBEE_TOKEN";
const API_KEY: &str = "RBEE_API_KEY";

/// Fills in the secrets that the user did not give: those of the file, or new ones, which are written there.
pub(super) fn complete(global: &mut Global, file: &Path) -> anyhow::Result<()> {
    let kept = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(anyhow!(error).context(format!("read {}", file.display()))),
    };
    let secret = |name: &str, prefix: &str| -> anyhow::Result<Secret> {
        let line = kept.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let text = line.map_or_else(|| format!("{prefix}{}", random()), str::to_owned);
        let wrong = |reason| anyhow!("{name} in {}: {reason}; mend or remove the file", file.display());
        text.parse().map_err(wrong)
    };
    let token = global.token.clone().map_or_else(|| secret(TOKEN, ""), Ok)?;
    let api_key = global.api_key.clone().map_or_else(|| secret(API_KEY, "sk-"), Ok)?;
    let text = format!("{TOKEN}={}\n{API_KEY}={}\n", token.expose(), api_key.expose());
    if text != kept {
        let folder = file.parent().map_or(Ok(()), fs::create_dir_all);
        let written = folder.and_then(|()| state_folder::replace(file, text.as_bytes()));
        written.with_context(|| format!("write {}", file.display()))?;
    }
    (global.token, global.api_key) = (Some(token), Some(api_key));
    Ok(())
}

/// 128 bits, as hexadecimal digits.
fn random() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::BaseUrl;

    fn global(token: Option<&str>) -> Global {
        Global {
            queen_url: BaseUrl::local(1),
            token: token.map(|token| token.parse().unwrap()),
            api_key: None,
            json: false,
        }
    }

    fn text(secret: &Option<Secret>) -> &str {
        secret.as_ref().unwrap().expose()
    }

    #[test]
    fn secrets_are_made_once_and_only_their_owner_can_read_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("up-1").join(FILE);
        let (mut first, mut second) = (global(None), global(None));
        complete(&mut first, &file).unwrap();
        complete(&mut second, &file).unwrap();
        assert_eq!(text(&first.token).len(), 32);
        assert!(text(&first.api_key).starts_with("sk-"));
        assert_eq!(text(&first.token), text(&second.token));
        assert_eq!(text(&first.api_key), text(&second.api_key));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_secret_that_is_given_is_the_one_that_counts_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let mut made = global(None);
        complete(&mut made, &file).unwrap();
        complete(&mut global(Some("correct-horse")), &file).unwrap();
        let mut later = global(None);
        complete(&mut later, &file).unwrap();
        assert_eq!(text(&later.token), "correct-horse");
        assert_eq!(text(&later.api_key), text(&made.api_key));
    }

    #[test]
    fn a_file_that_somebody_broke_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        fs::write(&file, "RBEE_TOKEN=short\n").unwrap();
        let error = complete(&mut global(None), &file).unwrap_err().to_string();
        assert!(
            error.contains("RBEE_TOKEN in") && error.contains("mend or remove"),
            "{error}"
        );
    }
}
