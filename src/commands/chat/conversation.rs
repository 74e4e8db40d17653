//! The messages of a chat and what is done to them: asking, answering, taking back, forgetting what no longer fits.
//!
//! Forgotten turns stay in the list, so that saving keeps them; only the prompt starts later. Nothing here knows of
//! tokens, models or terminals.

use crate::chat::Message;

/// A system prompt and the turns after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    system: Option<String>,
    messages: Vec<Message>,
    /// Messages before this one are not sent to the model any more.
    first: usize,
}

impl Conversation {
    /// A conversation that goes on from these messages.
    pub fn new(system: Option<String>, messages: Vec<Message>) -> Conversation {
        Conversation { system, messages, first: 0 }
    }

    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// An empty text takes the system prompt away.
    pub fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    /// All messages, forgotten ones included; the system prompt is not among them.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// What the model is to read.
    pub fn prompt(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::system(text));
        system.chain(self.messages[self.first..].iter().cloned()).collect()
    }

    pub fn ask(&mut self, text: &str) {
        self.messages.push(Message::user(text));
    }

    pub fn answer(&mut self, text: &str) {
        self.messages.push(Message::assistant(text));
    }

    /// The user's last message.
    pub fn last_question(&self) -> Option<String> {
        self.messages.iter().rev().find(|message| message.role == "user").map(Message::text)
    }

    /// Takes the last turn back: the user's message and what followed it. Returns the message.
    pub fn undo(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role == "user")?;
        let text = self.messages[at].text();
        self.messages.truncate(at);
        self.first = self.first.min(at);
        Some(text)
    }

    /// Takes back what followed the user's last message, so that it can be answered anew; false if there is none.
    pub fn reopen(&mut self) -> bool {
        let Some(at) = self.messages.iter().rposition(|message| message.role == "user") else { return false };
        self.messages.truncate(at + 1);
        self.first = self.first.min(at);
        true
    }

    /// Drops all messages; the system prompt stays.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.first = 0;
    }

    /// Sends everything again, as for a model with a larger context.
    pub fn remember(&mut self) {
        self.first = 0;
    }

    /// Leaves the oldest turn out of the prompt; false if only the last one is left.
    pub fn forget_oldest(&mut self) -> bool {
        let turns = self.messages.iter().enumerate().skip(self.first + 1);
        match turns.filter(|(_, message)| message.role == "user").map(|(at, _)| at).next() {
            Some(next) => {
                self.first = next;
                true
            }
            None => false,
        }
    }

    /// Turns (user's messages) that are not sent any more.
    pub fn forgotten_turns(&self) -> usize {
        self.messages[..self.first].iter().filter(|message| message.role == "user").count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_turns() -> Conversation {
        let mut c = Conversation::new(Some("be brief".into()), vec![]);
        for i in 1..=3 {
            c.ask(&format!("q{i}"));
            c.answer(&format!("a{i}"));
        }
        c
    }

    fn texts(messages: &[Message]) -> Vec<String> {
        messages.iter().map(Message::text).collect()
    }

    #[test]
    fn undo_takes_back_question_and_answer() {
        let mut c = three_turns();
        assert_eq!(c.undo().as_deref(), Some("q3"));
        assert_eq!(texts(c.messages()), ["q1", "a1", "q2", "a2"]);
        c.ask("unanswered");
        assert_eq!(c.undo().as_deref(), Some("unanswered"));
        assert_eq!(c.undo().as_deref(), Some("q2"));
        assert_eq!(c.undo().as_deref(), Some("q1"));
        assert_eq!(c.undo(), None);
        assert_eq!(c.system(), Some("be brief"));
    }

    #[test]
    fn reopening_keeps_the_question_and_drops_the_answer() {
        let mut c = three_turns();
        assert!(c.reopen());
        assert_eq!(texts(c.messages()), ["q1", "a1", "q2", "a2", "q3"]);
        assert!(c.reopen(), "an unanswered question is open already");
        assert_eq!(c.last_question().as_deref(), Some("q3"));
        c.clear();
        assert!(!c.reopen());
    }

    #[test]
    fn forgetting_goes_turn_by_turn_and_keeps_the_system_prompt_and_the_last_question() {
        let mut c = three_turns();
        c.ask("q4");
        assert!(c.forget_oldest());
        assert_eq!(texts(&c.prompt()), ["be brief", "q2", "a2", "q3", "a3", "q4"]);
        assert!(c.forget_oldest() && c.forget_oldest());
        assert!(!c.forget_oldest());
        assert_eq!(texts(&c.prompt()), ["be brief", "q4"]);
        assert_eq!((c.messages().len(), c.forgotten_turns()), (7, 3));
        // Taking the turn back brings the one before it back into the prompt's range.
        c.undo();
        c.ask("other");
        assert_eq!(texts(&c.prompt()), ["be brief", "other"]);
        c.remember();
        assert_eq!(c.prompt().len(), 8);
    }

    #[test]
    fn undo_below_what_was_forgotten_leaves_a_sane_prompt() {
        let mut c = three_turns();
        assert!(c.forget_oldest() && c.forget_oldest());
        c.undo();
        c.undo();
        assert_eq!(texts(&c.prompt()), ["be brief"]);
        c.ask("again");
        assert_eq!(texts(&c.prompt()), ["be brief", "again"]);
        assert_eq!(texts(c.messages()), ["q1", "a1", "again"]);
    }
}
