//! Hives named by a user's SSH configuration.
//!
//! `ssh2-config` reads it; two things are done to the text before. It knows no comments, and the port of a hive stands in
//! one, so this becomes a field. It knows no `Match`, whose lines it would count to the `Host` above, so this becomes a
//! block that fits nobody. For the same treatment, files that are included outside of any block are put in their place;
//! those that are included within one are left to the parser, and so without their comments.

use std::path::{Path, PathBuf};

use ssh2_config::{HostParams, ParseRule, SshConfig, SshParserError};

/// Where a hive listens, unless the comment says otherwise.
const DEFAULT_PORT: u16 = 7835;
/// The comment, `# rbee-hive-port: 7836`, and the field that it becomes.
const DIRECTIVE: &str = "rbee-hive-port:";
const PORT_FIELD: &str = "RbeeHivePort";
/// Files that include each other, at most; as in OpenSSH.
const MAX_DEPTH: usize = 16;
/// Fits everybody, as do the lines before the first block.
const EVERYBODY: &str = "Host *\n";
/// Fits nobody.
const NOBODY: &str = "Host !*\n";

/// Why an SSH configuration names no hives. The text fits after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// A file cannot be read.
    #[error("read the SSH configuration {}: {source}; --hives-from-ssh PATH names another one", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The parser does not understand it.
    #[error("understand the SSH configuration {}: {source}", path.display())]
    Parse {
        /// The main file; the mistake may be in one that it includes.
        path: PathBuf,
        /// Why not.
        source: Box<SshParserError>,
    },
    /// A comment that should hold a port holds something else.
    #[error("read the port of a hive in {} line {line}: `{text}` is none; write `# {DIRECTIVE} 7835`", path.display())]
    Port {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// A pattern of file names is none.
    #[error("include {pattern} in the SSH configuration: {reason}")]
    Include {
        /// Which pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A host that may have a hive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshHive {
    /// What the user calls it.
    pub(crate) name: String,
    /// Where its hive is to be asked.
    pub(crate) url: String,
}

/// The hosts of an SSH configuration that have a `HostName`, in its order. Wildcards and negations name no host.
///
/// A relative `Include` is looked for beside the main file, which for a user's own configuration is what ssh does.
pub(crate) fn hives(path: &Path, home: Option<&Path>) -> Result<Vec<SshHive>, SshError> {
    let mut text = String::new();
    Preparation { main: path, home }.add(path, 0, &mut text)?;
    let mut config = SshConfig::default();
    if let Some(home) = home {
        config = config.home_dir(home);
    }
    let config = config
        .parse(&mut text.as_bytes(), ParseRule::ALLOW_UNKNOWN_FIELDS)
        .map_err(|source| SshError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
    let clauses = config.get_hosts().iter().flat_map(|host| &host.pattern);
    let mut hives: Vec<SshHive> = Vec::new();
    for clause in clauses.filter(|clause| !clause.negated && !clause.pattern.contains(['*', '?'])) {
        let name = clause.pattern.trim_matches('"');
        let hive = url(name, &config.query(name)).map(|url| SshHive {
            name: name.to_owned(),
            url,
        });
        hives.extend(hive.filter(|hive| hives.iter().all(|known| known.url != hive.url)));
    }
    Ok(hives)
}

/// Where the hive of a host is; `None` if the configuration does not say where the host is.
fn url(name: &str, params: &HostParams) -> Option<String> {
    // Read by the parser itself, from a file that is included within a block: its lines cannot be told from the host's.
    if params.ignored_fields.keys().any(|field| is(field, "match")) {
        tracing::info!(
            host = name,
            "not asked for a hive: what ssh has for it depends on a Match"
        );
        return None;
    }
    // The tokens that ssh knows there.
    let host = params.host_name.as_ref()?.replace("%h", name).replace("%%", "%");
    let port = params
        .ignored_fields
        .iter()
        .find_map(|(field, values)| is(field, PORT_FIELD).then(|| values.first()?.parse().ok()).flatten())
        .unwrap_or(DEFAULT_PORT);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Some(format!("http://{host}:{port}"))
}

struct Preparation<'a> {
    main: &'a Path,
    home: Option<&'a Path>,
}

impl Preparation<'_> {
    /// Appends what the parser is to read of a file. Fields that name no hive are left out: not all that ssh takes for
    /// their values does the parser take, too.
    fn add(&self, path: &Path, depth: usize, text: &mut String) -> Result<(), SshError> {
        let bytes = std::fs::read(path).map_err(|source| SshError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut is_in_block = false;
        for (number, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let line = line.trim();
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(port) = comment.trim().strip_prefix(DIRECTIVE) {
                    let port = self::port(port.trim(), path, number + 1)?;
                    text.push_str(&format!("{PORT_FIELD} {port}\n"));
                }
                continue;
            }
            let (field, value) = split(line);
            if is(field, "match") {
                // `all` ends the block above, and nothing else.
                is_in_block = !is(value, "all");
                text.push_str(if is_in_block { NOBODY } else { EVERYBODY });
            } else if is(field, "include") {
                self.include(value, is_in_block, depth, text)?;
            } else if is(field, "host") || is(field, "hostname") {
                is_in_block |= is(field, "host");
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(())
    }

    fn include(&self, value: &str, is_in_block: bool, depth: usize, text: &mut String) -> Result<(), SshError> {
        for pattern in words(value).map(|word| self.resolve(word)) {
            let fail = |reason: String| SshError::Include {
                pattern: pattern.clone(),
                reason,
            };
            if is_in_block {
                // What it includes is for this block's hosts only, which the parser sees to.
                text.push_str(&format!("Include \"{pattern}\"\n"));
                continue;
            }
            if depth == MAX_DEPTH {
                return Err(fail("too many files include each other".to_owned()));
            }
            for file in glob::glob(&pattern).map_err(|error| fail(error.to_string()))? {
                let file = file.map_err(|error| fail(error.to_string()))?;
                if file.is_file() {
                    self.add(&file, depth + 1, text)?;
                    text.push_str(EVERYBODY);
                }
            }
        }
        Ok(())
    }

    /// The pattern with its folder, as ssh finds it.
    fn resolve(&self, pattern: &str) -> String {
        let in_folder = |folder: &Path, rest: &str| {
            let folder = glob::Pattern::escape(&folder.display().to_string());
            format!("{}/{rest}", folder.trim_end_matches('/'))
        };
        match (pattern.strip_prefix("~/"), self.home, self.main.parent()) {
            (Some(rest), Some(home), _) => in_folder(home, rest),
            (None, _, Some(folder)) if !pattern.starts_with('/') && folder != Path::new("") => {
                in_folder(folder, pattern)
            }
            _ => pattern.to_owned(),
        }
    }
}

fn port(text: &str, path: &Path, line: usize) -> Result<u16, SshError> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| SshError::Port {
            path: path.to_owned(),
            line,
            text: text.to_owned(),
        })
}

/// A field and its value, which a space or an equals sign parts.
fn split(line: &str) -> (&str, &str) {
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (field, rest) = line.split_at(end);
    (field, rest.trim_start().trim_start_matches('=').trim())
}

/// Words parted by spaces; between quotation marks a space parts nothing.
fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split('"').enumerate().flat_map(|(n, part)| {
        let (plain, quoted) = if n % 2 == 0 { (part, None) } else { ("", Some(part)) };
        plain.split_whitespace().chain(quoted)
    })
}

fn is(field: &str, name: &str) -> bool {
    field.eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) -> &Self {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            self
        }

        fn hives(&self) -> Result<Vec<(String, String)>, SshError> {
            let hives = hives(&self.0.path().join(".ssh/config"), Some(self.0.path()))?;
            Ok(hives.into_iter().map(|hive| (hive.name, hive.url)).collect())
        }
    }

    #[track_caller]
    fn assert_hives(folder: &Folder, expected: &[(&str, &str)]) {
        let found = folder.hives().unwrap();
        let found: Vec<_> = found.iter().map(|(name, url)| (name.as_str(), url.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[track_caller]
    fn assert_read(text: &str, expected: &[(&str, &str)]) {
        assert_hives(Folder::new().write(".ssh/config", text), expected);
    }

    #[test]
    fn each_host_with_a_host_name_may_have_a_hive() {
        assert_read(
            "Host gpu-1\n  HostName 10.0.0.1\n  User me\n\nHost gpu-2\n\tHostName=gpu-2.lan\nHost v6\nHostName fd00::1\n",
            &[
                ("gpu-1", "http://10.0.0.1:7835"),
                ("gpu-2", "http://gpu-2.lan:7835"),
                ("v6", "http://[fd00::1]:7835"),
            ],
        );
        assert_read("Host no-name\n  User me\n", &[]);
        assert_read("", &[]);
    }

    #[test]
    fn wildcards_and_negations_name_no_host_but_apply_to_hosts() {
        assert_read(
            "Host *\n  HostName 10.0.0.9\nHost !gpu gpu-?\n  HostName 10.0.0.8\n",
            &[],
        );
        assert_read(
            "Host gpu-1 gpu-2 !gpu-3\nHost gpu-*\n  HostName %h.lan\n",
            &[("gpu-1", "http://gpu-1.lan:7835"), ("gpu-2", "http://gpu-2.lan:7835")],
        );
    }

    #[test]
    fn of_several_names_for_one_host_the_first_is_enough() {
        assert_read(
            "Host gpu gpu-alias\n  HostName 10.0.0.1\nHost again\n  HostName 10.0.0.1\n",
            &[("gpu", "http://10.0.0.1:7835")],
        );
    }

    #[test]
    fn a_comment_in_the_block_tells_the_hives_port() {
        assert_read(
            "Host a\n  HostName 10.0.0.1\n  # rbee-hive-port: 7836\nHost b\n  #rbee-hive-port:7837\n  HostName 10.0.0.2\nHost c\n  HostName 10.0.0.3\n",
            &[
                ("a", "http://10.0.0.1:7836"),
                ("b", "http://10.0.0.2:7837"),
                ("c", "http://10.0.0.3:7835"),
            ],
        );
        assert_read(
            "Host a\n  HostName 10.0.0.1\nHost *\n  # rbee-hive-port: 9000\n",
            &[("a", "http://10.0.0.1:9000")],
        );
    }

    #[test]
    fn a_port_that_is_none_is_named_with_its_line() {
        for wrong in ["x", "0", "65536", ""] {
            let text = format!("Host a\n  HostName 10.0.0.1\n  # rbee-hive-port: {wrong}\n");
            let error = Folder::new().write(".ssh/config", &text).hives().unwrap_err();
            assert!(error.to_string().contains("config line 3"), "{error}");
        }
    }

    #[test]
    fn included_files_are_read_with_their_comments_and_in_their_place() {
        let folder = Folder::new();
        folder
            .write(
                ".ssh/config",
                "Include conf.d/*.conf \"~/my hosts\" nowhere\nHost own\n  HostName 10.0.0.3\nHost a\n  HostName 10.9.9.9\n",
            )
            .write(".ssh/conf.d/1.conf", "Host a\n  HostName 10.0.0.1\n  # rbee-hive-port: 7836\n")
            .write(".ssh/conf.d/2.txt", "Host not-included\n  HostName 10.0.0.8\n")
            .write("my hosts", "Host b\n  HostName 10.0.0.2\n");
        assert_hives(
            &folder,
            &[
                ("a", "http://10.0.0.1:7836"),
                ("b", "http://10.0.0.2:7835"),
                ("own", "http://10.0.0.3:7835"),
            ],
        );
    }

    #[test]
    fn what_a_block_includes_is_for_its_hosts_only() {
        let folder = Folder::new();
        folder
            .write(
                ".ssh/config",
                "Host gpu\n  Include common\nHost other\n  User me\n  Include common\n",
            )
            .write(
                ".ssh/common",
                "HostName %h.lan\nHost gpu\n  User me\nHost stranger\n  HostName 10.0.0.7\n",
            );
        assert_hives(
            &folder,
            &[("gpu", "http://gpu.lan:7835"), ("other", "http://other.lan:7835")],
        );
    }

    #[test]
    fn files_that_include_each_other_for_ever_are_an_error() {
        let folder = Folder::new();
        let error = folder.write(".ssh/config", "Include config\n").hives().unwrap_err();
        assert!(matches!(error, SshError::Include { .. }), "{error}");
    }

    #[test]
    fn the_lines_of_a_match_are_not_those_of_the_host_above_it() {
        assert_read(
            "Host a\n  HostName 10.0.0.1\nMatch host b exec \"true\"\n  HostName 10.0.0.2\n  # rbee-hive-port: 1\nHost c\n  HostName 10.0.0.3\n",
            &[("a", "http://10.0.0.1:7835"), ("c", "http://10.0.0.3:7835")],
        );
        let folder = Folder::new();
        folder
            .write(".ssh/config", "Host a\n  HostName 10.0.0.1\nMatch all\nInclude more\n")
            .write(".ssh/more", "Host b\n  HostName 10.0.0.2\n");
        assert_hives(&folder, &[("a", "http://10.0.0.1:7835"), ("b", "http://10.0.0.2:7835")]);
        let folder = Folder::new();
        folder
            .write(".ssh/config", "Host a\n  HostName 10.0.0.1\n  Include more\n")
            .write(".ssh/more", "Match user me\nHostName 10.0.0.2\n");
        assert_hives(&folder, &[]);
    }

    #[test]
    fn fields_that_name_no_hive_may_be_anything_that_ssh_knows() {
        assert_read(
            "AddKeysToAgent confirm\nConnectTimeout 1m\nFutureField x\nHost a\n  ForwardAgent $SSH_AUTH_SOCK\n  HostName 10.0.0.1 # the big one\n",
            &[("a", "http://10.0.0.1:7835")],
        );
    }

    #[test]
    fn a_file_that_is_missing_or_broken_is_named() {
        let error = Folder::new().hives().unwrap_err();
        assert!(matches!(error, SshError::Read { .. }), "{error}");
        assert!(error.to_string().contains(".ssh/config"), "{error}");
        let error = Folder::new()
            .write(".ssh/config", "Host \"a\n  HostName 10.0.0.1\n")
            .hives()
            .unwrap_err();
        assert!(matches!(error, SshError::Parse { .. }), "{error}");
    }
}
