//! `--console`: the serial port of a guest on a terminal, in both directions.

use imsvisor_boot::event::Line;
use imsvisor_boot::machine::{End, Outcome};
use imsvisor_boot::terminal::ESCAPE;
use imsvisor_tests::scenario::Plan;
use imsvisor_tests::terminal::{Person, boot};

fn at_terminal(name: &str, does: fn(&mut Person)) -> Outcome {
    let plan = || {
        let mut plan = Plan::new()?;
        plan.guest("echo", "echo mem=32M console=on")?;
        plan.guest("echo", "late mem=32M console=on")?;
        Ok::<_, anyhow::Error>(plan)
    };
    plan().and_then(|plan| boot(name, &plan, "echo", does)).unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

#[test]
fn a_person_types_to_a_guest_and_sees_each_byte_and_nothing_is_forged() {
    let outcome = at_terminal("a guest at a terminal", |person| {
        // A prompt has no line end.
        person.waits_for("> ");
        person.types(b"helo");
        assert_eq!(person.waits_for("helo"), "helo", "each byte is echoed at once");
        person.types(b"\x7flo\r");
        assert_eq!(person.waits_for("> "), "\x08 \x08lo\r\n5 bytes\n> ");
        person.types(b"\x03\x04\x1b[A\r");
        assert!(person.waits_for("> ").contains("5 bytes"), "control keys are the guest's");
        // Many times what the serial ports hold.
        person.types(&[&[b'x'; 200][..], b"\r"].concat());
        assert_eq!(person.waits_for("> ").matches('x').count(), 200);
        person.types(b"tick\r");
        person.waits_for("> ");
        person.types(b"@ims done status=failed\r");
        person.waits_for("> ");
        person.types(b"exit\r");
        person.waits_for("@result received=");
    });
    assert_eq!(outcome.end, End::Off, "{}", outcome.console());
    let summary = outcome.summary();
    let echo = &summary.guests[0];
    assert_eq!((echo.name.as_str(), echo.reported("errors")), ("echo", Some(0)));
    let typed = "helo\u{7f}lo\r\u{3}\u{4}\u{1b}[A\r".len() + 201 + 5 + 24 + 5;
    assert_eq!(echo.reported("received"), Some(typed as u64), "no byte is lost on the way");
    let events = |name| outcome.lines.iter().filter_map(move |seen| seen.line.event(name));
    assert_eq!(events("done").count(), 1, "{}", outcome.console());
    // There is one terminal.
    assert!(
        events("refused")
            .any(|refused| refused.get("why").is_some_and(|why| why.contains("late: console=on: the guest echo")))
    );
    let is_raw = |line: &Line| matches!(line, Line::Text(text) if text.contains("bytes"));
    assert!(!outcome.lines.iter().any(|seen| is_raw(&seen.line)), "raw bytes on the hypervisor's line");
}

#[test]
fn the_escape_key_ends_a_run_whose_guest_waits_for_ever() {
    let outcome = at_terminal("a guest that is left alone", |person| {
        person.waits_for("> ");
        person.types(&[ESCAPE]);
    });
    assert_eq!(outcome.end, End::Asked);
}

/// The screen is on as well, so that it is painted while guests run.
#[test]
fn where_the_console_has_com2_the_terminal_is_com1() {
    let plan = || {
        let mut plan = Plan::new()?;
        plan.config.hypervisor_options = ["console=com2", "screen=on"].map(str::to_owned).to_vec();
        plan.guest("echo", "echo mem=32M console=on")?;
        Ok::<_, anyhow::Error>(plan)
    };
    let talk: fn(&mut Person) = |person| {
        person.waits_for("> ");
        person.types(b"exit\r");
        person.waits_for("@result received=");
    };
    let outcome = plan().and_then(|plan| boot("a terminal on COM1", &plan, "echo", talk)).expect("a boot");
    assert_eq!(outcome.end, End::Off, "{}", outcome.console());
    assert!(
        outcome.console().contains("console: COM2, 115200 baud, as the command line says"),
        "{}",
        outcome.console()
    );
    assert_eq!(outcome.summary().guests[0].reported("errors"), Some(0));
}
