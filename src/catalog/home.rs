//! Where rynd keeps things: fetched models in the platform's cache directory, the user's catalog in its configuration
//! directory. RYND_HOME moves both, to `$RYND_HOME/cache` and `$RYND_HOME/config`, and the chats that are kept, to `$RYND_HOME/chats`.
//!
//! Models live in `models/NAME/`, those of the hub in `models/hf/OWNER/REPO/`. Nothing is created before it is needed.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};

#[derive(Clone, Debug)]
pub struct Home {
    pub cache: PathBuf,
    pub config: PathBuf,
    data: PathBuf,
}

impl Home {
    pub fn from_env() -> Result<Home> {
        match std::env::var_os("RYND_HOME") {
            Some(root) if !root.is_empty() => Ok(Home::at(Path::new(&root))),
            _ => Ok(Home {
                cache: dirs::cache_dir().ok_or(Error::NoHome { what: "cache" })?.join("rynd"),
                config: dirs::config_dir().ok_or(Error::NoHome { what: "configuration" })?.join("rynd"),
                data: dirs::data_dir().ok_or(Error::NoHome { what: "data" })?.join("rynd"),
            }),
        }
    }

    pub fn at(root: &Path) -> Home {
        Home { cache: root.join("cache"), config: root.join("config"), data: root.to_owned() }
    }

    /// The user's own catalog; it need not exist.
    pub fn user_catalog(&self) -> PathBuf {
        self.config.join("models.toml")
    }

    /// What the user typed into earlier chats, one entry a line; it need not exist.
    pub fn chat_history(&self) -> PathBuf {
        self.config.join("chat_history")
    }

    /// Chats that are kept; it need not exist.
    pub fn chats(&self) -> PathBuf {
        self.data.join("chats")
    }

    /// Pages that were computed, in one folder a model; it need not exist.
    pub fn pages(&self) -> PathBuf {
        self.cache.join("pages")
    }

    pub(super) fn models(&self) -> PathBuf {
        self.cache.join("models")
    }
}
