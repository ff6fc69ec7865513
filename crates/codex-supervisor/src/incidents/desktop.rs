//! A notification on the person's desktop, where there is one.

use std::collections::HashMap;
use std::time::Duration;

use codex_control::incident::Level;
use codex_control::settings::NotificationLevel;
use codex_incident::Notice;
use tracing::debug;
use zbus::Variant;

/// Time for the desktop to take a notification. It is an extra: nobody waits for it, nothing depends on it.
const NOTIFY_WITHIN: Duration = Duration::from_secs(10);
/// How long the desktop shows it.
const SHOWN_MS: i32 = 15_000;
/// Longest text that is sent, in bytes; desktops cut earlier.
const TEXT_BYTES_MAX: usize = 500;

/// Whether a notice is worth a notification.
pub(crate) fn is_wanted(notice: &Notice, level: NotificationLevel) -> bool {
    match level {
        NotificationLevel::All => true,
        NotificationLevel::ImportantOnly => notice.level == Level::Important,
        NotificationLevel::Off => false,
    }
}

/// Shows `notice`, if there is a desktop that takes it within [`NOTIFY_WITHIN`].
///
/// Source: Desktop Notifications Specification 1.2, `org.freedesktop.Notifications.Notify`.
pub(crate) async fn show(notice: Notice) {
    match tokio::time::timeout(NOTIFY_WITHIN, notify(&notice)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "no desktop shows notifications"),
        Err(_) => debug!("the desktop does not answer"),
    }
}

async fn notify(notice: &Notice) -> zbus::Result<()> {
    let connection = zbus::Connection::session().await?;
    let body = escaped(&[Some(notice.text.as_str()), notice.hint.as_deref()]);
    let urgency: u8 = if notice.level == Level::Important { 2 } else { 1 };
    let hints = HashMap::from([("urgency", Variant::from(urgency))]);
    let nothing: [&str; 0] = [];
    connection
        .call_method(
            Some("org.freedesktop.Notifications"),
            "/org/freedesktop/Notifications",
            Some("org.freedesktop.Notifications"),
            "Notify",
            &("codex-supervisor", 0_u32, "dialog-information", "Codex", body, &nothing[..], hints, SHOWN_MS),
        )
        .await?;
    Ok(())
}

/// The parts that are there, a line each; bodies are markup to desktops.
fn escaped(parts: &[Option<&str>]) -> String {
    let text = parts.iter().flatten().copied().collect::<Vec<_>>().join("\n");
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use codex_control::incident::IncidentId;

    use super::*;

    #[test]
    fn what_is_worth_a_notification_is_the_persons_choice() {
        let notice = |level| Notice {
            incident: IncidentId(1),
            endpoint: None,
            level,
            text: String::new(),
            hint: None,
            action: None,
            asks: None,
        };
        for (setting, info, important) in [
            (NotificationLevel::All, true, true),
            (NotificationLevel::ImportantOnly, false, true),
            (NotificationLevel::Off, false, false),
        ] {
            let wanted = (is_wanted(&notice(Level::Info), setting), is_wanted(&notice(Level::Important), setting));
            assert_eq!(wanted, (info, important), "{setting:?}");
        }
    }

    #[test]
    fn a_providers_words_are_no_markup() {
        assert_eq!(escaped(&[Some("a <b> & c"), None, Some("d")]), "a &lt;b&gt; &amp; c\nd");
        assert!(escaped(&[Some(&"é".repeat(TEXT_BYTES_MAX))]).len() <= TEXT_BYTES_MAX);
    }
}
