//! The guests that were asked for by `--guest`: which image each is, under which name, and whether the hypervisor will take it.
//!
//! All of it is found out before anything is built, with the hypervisor's own readers, so that a wrong option costs no boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use imsvisor::guest::image::{self, Files};
use imsvisor::guest::options::{self, NAME_MAX, Options};
use imsvisor::guest::{bzimage, elf};

use crate::image::{CONSOLE, Module};
use crate::linux::{self, Asked, Payload};
use crate::words;

/// The option that the launcher keeps for itself: the guest's name.
const NAME: &str = "name=";

/// One guest that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestArg {
    source: Source,
    /// The module's string: the name, then the hypervisor's options.
    words: Vec<String>,
    /// Whether the name was asked for, so that it must not be changed.
    named: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Ours(String),
    File(PathBuf),
    Linux(Asked),
}

/// The images that guests begin with.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Ours, by their names.
    pub ours: BTreeMap<String, PathBuf>,
    /// Debian's Linux and the initrd for it, where a guest takes either.
    pub linux: Option<Payload>,
}

impl GuestArg {
    /// Reads `guest option=value …`, where `guest` is the name of one of ours, `linux`, or, with a `/` in it, the path of an image.
    pub fn new(text: &str) -> Result<Self> {
        Self::with(text, &Asked::default())
    }

    /// The same; a guest `linux` has the files and the words on its command line that are asked for.
    pub fn with(text: &str, linux: &Asked) -> Result<Self> {
        let mut words = words::split(text)?.into_iter();
        let first = words.next().context("no guest is named")?;
        let (names, options): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with(NAME));
        ensure!(names.len() < 2, "name= is there twice");
        let source = if first == linux::NAME { Source::Linux(linux.clone()) } else { source(&first, &options)? };
        let options = if let Source::Linux(asked) = &source { asked.options(options) } else { options };
        let named = names.first().map(|name| name[NAME.len()..].to_owned());
        let name = named.clone().unwrap_or_else(|| source.name());
        let guest = Self { source, named: named.is_some(), words: [vec![name], options].concat() };
        guest.check()?;
        Ok(guest)
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The name of one of ours, which has to be built.
    pub fn ours(&self) -> Option<&str> {
        match &self.source {
            Source::Ours(name) => Some(name),
            Source::File(_) | Source::Linux(_) => None,
        }
    }

    /// The files and words for the guest `linux`; `None` for other guests.
    pub fn linux(&self) -> Option<&Asked> {
        match &self.source {
            Source::Linux(asked) => Some(asked),
            Source::Ours(_) | Source::File(_) => None,
        }
    }

    /// Bytes of memory that it is to have.
    pub fn memory(&self) -> u64 {
        Options::parse(&self.string()).map_or(0, |options| options.memory)
    }

    /// The module, and behind it the one of the initrd, if it has one.
    pub fn modules(&self, images: &Images) -> Result<Vec<Module>> {
        let (image, initrd) = match &self.source {
            Source::File(path) => (path.clone(), None),
            Source::Ours(name) => {
                (images.ours.get(name).with_context(|| format!("the build left no guest {name}"))?.clone(), None)
            }
            Source::Linux(asked) => asked.files(images.linux.as_ref())?,
        };
        if self.linux().is_some() {
            self.check_files(&image, initrd.as_deref())?;
        }
        let initrd = initrd.map(|path| Module::from_words(path, vec![image::INITRD.to_owned()])).transpose()?;
        Ok([Module::from_words(image, self.words.clone())?].into_iter().chain(initrd).collect())
    }

    /// The module's string, as GRUB hands it to the hypervisor.
    pub fn string(&self) -> String {
        words::grub_join(&self.words)
    }

    /// Refuses what the hypervisor would refuse, in its words, and says what helps.
    fn check(&self) -> Result<()> {
        match (Options::parse(&self.string()), &self.source) {
            (Err(options::Error::Name(name)), Source::Ours(_)) if !self.named => bail!("{}", not_ours(&name, None)),
            (parsed, _) => parsed.map(drop).map_err(|error| anyhow!("{error}{}", hint(&error)))?,
        }
        match &self.source {
            Source::File(path) => self.check_files(path, None),
            Source::Linux(Asked { kernel: Some(kernel), initrd, .. }) => self.check_files(kernel, initrd.as_deref()),
            // Debian's kernel may not be there yet: with it, `modules` checks the initrd for its size.
            Source::Linux(Asked { initrd: Some(initrd), .. }) => {
                ensure!(!read(initrd)?.is_empty(), "{}: {}", initrd.display(), image::Error::EmptyInitrd);
                Ok(())
            }
            Source::Ours(_) | Source::Linux(_) => Ok(()),
        }
    }

    /// Refuses files that the hypervisor would refuse in this guest's memory.
    fn check_files(&self, path: &Path, initrd: Option<&Path>) -> Result<()> {
        let options = Options::parse(&self.string()).map_err(|error| anyhow!("{error}"))?;
        let (image, initrd) =
            (read(path)?, initrd.map(|path| Ok::<_, anyhow::Error>((path, read(path)?))).transpose()?);
        let files = Files {
            image: &image,
            initrd: initrd.as_ref().map(|(_, bytes)| bytes.as_slice()),
            cmdline: &options.cmdline,
        };
        let laid_out = image::lay_out(files, options.memory).map(drop);
        laid_out.map_err(|error| {
            let of_initrd = matches!(error, image::Error::EmptyInitrd | image::Error::InitrdTooLarge { .. });
            let path = initrd.as_ref().filter(|_| of_initrd).map_or(path, |(path, _)| path);
            anyhow!("{}: {error}{}", path.display(), image_hint(error, &image))
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Source {
    /// The guest's name where none was asked for. A file's is made of the file's, as far as that can be one.
    fn name(&self) -> String {
        match self {
            Self::Ours(name) => name.clone(),
            Self::Linux(_) => linux::NAME.to_owned(),
            Self::File(path) => {
                let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
                stem.chars().map(legal).take(NAME_MAX).collect()
            }
        }
    }
}

fn source(first: &str, options: &[String]) -> Result<Source> {
    if !first.contains('/') {
        return Ok(Source::Ours(first.to_owned()));
    }
    let path = PathBuf::from(first);
    if path.is_file() {
        return Ok(Source::File(path));
    }
    // A path that holds a space has come apart.
    let broken = options.first().is_some_and(|next| !next.contains('='));
    let hint = "; a path that holds a space needs quotes of its own: --guest '\"/my guests/one.elf\" mem=64M'";
    bail!("there is no file {}{}", path.display(), if broken { hint } else { "" })
}

/// What helps against a string that the hypervisor refuses.
fn hint(error: &options::Error) -> String {
    match error {
        options::Error::Name(_) => "; name=… gives the guest another one".to_owned(),
        options::Error::Unknown(word) if word.contains('=') => {
            "; its own command line goes into cmdline=\"…\", and name=… gives it a name".to_owned()
        }
        options::Error::Unknown(_) => "; a value that holds a space needs quotes: cmdline=\"a b\"".to_owned(),
        _ => String::new(),
    }
}

/// Where in an ELF file its kind stands (`e_type`), and the kind that a position-independent executable has (`ET_DYN`).
const KIND: std::ops::Range<usize> = 16..18;
const POSITION_INDEPENDENT: [u8; 2] = [3, 0];

/// What helps against an image that the hypervisor refuses.
fn image_hint(error: image::Error, image: &[u8]) -> &'static str {
    use image::Error::{Elf, InitrdTooLarge, Linux};
    match error {
        Elf(elf::Error::NotElf) => {
            "; a guest is an ELF64 executable, linked at fixed addresses from 1 MiB on, or Linux' bzImage"
        }
        Elf(elf::Error::Kind) if image.get(KIND) == Some(&POSITION_INDEPENDENT) => {
            ": it is position-independent (PIE). Build it with relocation-model=static (Rust: -C relocation-model=static; \
             C: -static -fno-pie -no-pie)"
        }
        Elf(elf::Error::Outside(_)) => "; link the guest from 1 MiB on, or give it more memory by mem=",
        Linux(bzimage::Error::Memory { .. }) | InitrdTooLarge { .. } => "; give it more memory by mem=",
        _ => "",
    }
}

/// Gives guests of one name names of their own: the second `demo` is `demo-2`. Two that were asked to have one name are refused.
pub fn make_distinct(guests: &mut [GuestArg]) -> Result<()> {
    let mut taken = BTreeSet::new();
    for guest in guests.iter().filter(|guest| guest.named) {
        ensure!(taken.insert(guest.name().to_owned()), "two guests have name={}", guest.name());
    }
    for guest in guests.iter_mut().filter(|guest| !guest.named) {
        let name = (1..).map(|number| numbered(guest.name(), number)).find(|name| !taken.contains(name));
        if let (Some(name), Some(first)) = (name, guest.words.first_mut()) {
            taken.insert(name.clone());
            *first = name;
        }
    }
    Ok(())
}

/// Gives the terminal to the first guest, unless one asks for it. Returns the name of the one that has it.
pub fn give_console(guests: &mut [GuestArg]) -> Result<String> {
    let holders: Vec<_> = guests.iter().filter(|guest| guest.words.iter().any(|word| word == CONSOLE)).collect();
    match (holders.as_slice(), guests.first()) {
        ([_, _, ..], _) => bail!("console=on: there is one terminal, and {} guests want it", holders.len()),
        ([holder], _) => Ok(holder.name().to_owned()),
        ([], None) => bail!("--console wants a guest"),
        ([], Some(_)) => {
            let first = &mut guests[0];
            first.words.retain(|word| !word.starts_with("console="));
            first.words.push(CONSOLE.to_owned());
            Ok(first.name().to_owned())
        }
    }
}

/// A name with a number behind it, within the length that a name can have; the first has none.
fn numbered(name: &str, number: u32) -> String {
    if number == 1 {
        return name.to_owned();
    }
    let suffix = format!("-{number}");
    let kept: String = name.chars().take(NAME_MAX.saturating_sub(suffix.len())).collect();
    kept + &suffix
}

/// Refuses a guest that is none of ours.
pub fn check_ours(guests: &[GuestArg], known: &BTreeMap<String, PathBuf>) -> Result<()> {
    let Some(name) = guests.iter().filter_map(GuestArg::ours).find(|name| !known.contains_key(*name)) else {
        return Ok(());
    };
    bail!("--guest '{name}': {}", not_ours(name, Some(known)))
}

/// What a source file says in the first sentence of its documentation.
pub fn about(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let text: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let text = text.join(" ");
    text.split_once(". ").map_or(text.as_str(), |(first, _)| first).trim_end_matches('.').to_owned()
}

/// Says that a guest is none of ours, which there are if that is known, and how a file is named.
fn not_ours(name: &str, known: Option<&BTreeMap<String, PathBuf>>) -> String {
    let list = |known: &BTreeMap<String, PathBuf>| known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let ours = known.map(|known| format!(" (there are {}, {})", list(known), linux::NAME)).unwrap_or_default();
    let file = if Path::new(name).is_file() { format!(": for the file here write ./{name}") } else { String::new() };
    format!("'{name}' is none of our guests{ours}; a file is named by a path with a / in it{file}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest file that the hypervisor takes: one segment at 2 MiB, entered at its beginning.
    fn image() -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
        let words = |file: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|word| file.extend(word.to_le_bytes()));
        words(&mut file, &[0x20_0000, 64, 0]);
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        words(&mut file, &[120, 0x20_0000, 0x20_0000, 4, 4, 0x1000]);
        file.extend(b"code");
        file
    }

    /// A directory with a guest's image of this name.
    fn with_image(name: &str, image: &[u8]) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        fs::write(&file, image).unwrap();
        (directory, file.display().to_string())
    }

    fn error(text: &str) -> String {
        format!("{:#}", GuestArg::new(text).expect_err(text))
    }

    #[test]
    fn guests_are_ours_by_name_or_files_by_path() {
        let (_directory, file) = with_image("other.elf", &image());
        let ours = GuestArg::new("hostile cmdline=\"a b\"").unwrap();
        assert_eq!((ours.ours(), ours.string().as_str()), (Some("hostile"), "hostile \"cmdline=a b\""));
        assert!(ours.modules(&Images::default()).is_err());
        let other = GuestArg::new(&format!("{file} mem=1G")).unwrap();
        assert_eq!((other.ours(), other.string().as_str()), (None, "other mem=1G"));
        assert_eq!(other.modules(&Images::default()).unwrap()[0].name(), "other");
    }

    #[test]
    fn a_files_name_becomes_one_that_a_guest_can_have_or_name_gives_it() {
        let (_directory, file) = with_image("My_guest v2 of today.elf", &image());
        assert_eq!(GuestArg::new(&format!("'{file}'")).unwrap().name(), "my-guest-v2-of-t");
        let named = GuestArg::new(&format!("'{file}' mem=32M name=mine")).unwrap();
        assert_eq!(named.string(), "mine mem=32M");
        let refused = error(&format!("'{file}' name=My_guest"));
        assert!(refused.contains("'My_guest' is no name: 1 to 16 of a-z, 0-9 and -; name="), "{refused}");
        assert!(error("demo name=a name=b").contains("twice"));
    }

    #[test]
    fn what_the_hypervisor_would_refuse_is_refused_in_its_words() {
        for (text, words) in [
            ("", "no guest is named"),
            ("demo mem", "'mem' is not mem="),
            ("demo mem=3M", "mem=3M: a number with M or G, from 4M"),
            ("demo colour=blue", "cmdline=\"…\""),
            ("demo device=zz", "bus:device.function"),
            ("demo cpus=65", "cpus=65"),
            ("demo cmdline=a b", "needs quotes"),
            ("demo \"x", "quote is not closed"),
            ("/no/such/file", "there is no file /no/such/file"),
        ] {
            let error = error(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_no_image_is_refused_with_what_helps() {
        let refused = |bytes: &[u8], options: &str| {
            let (_directory, file) = with_image("x", bytes);
            error(&format!("{file} {options}"))
        };
        assert!(refused(b"# a text", "").contains("not an ELF file; a guest is an ELF64"));
        let mut pie = image();
        pie[16] = 3;
        assert!(refused(&pie, "").contains("relocation-model=static"));
        // Another machine's is no PIE.
        let mut foreign = image();
        foreign[18] = 183;
        let words = refused(&foreign, "");
        assert!(words.contains("not a 64-bit x86-64 executable") && !words.contains("PIE"), "{words}");
        let mut high = image();
        high[64 + 24..64 + 32].copy_from_slice(&(32_u64 << 20).to_le_bytes());
        assert!(refused(&high, "mem=16M").contains("more memory by mem="));
    }

    #[test]
    fn a_path_with_a_space_is_told_to_be_quoted() {
        let (_directory, file) = with_image("my guest", &image());
        let words = error(&format!("{file} mem=64M"));
        assert!(words.contains("quotes of its own"), "{words}");
        assert_eq!(GuestArg::new(&format!("\"{file}\" mem=64M")).unwrap().name(), "my-guest");
        assert!(!error("/no/such/file mem=64M").contains("quotes"));
    }

    #[test]
    fn a_linux_is_two_modules_where_it_has_an_initrd() {
        let (_directory, kernel) = with_image("vmlinux", &image());
        let payload = Payload { kernel: kernel.clone().into(), initrd: Some(kernel.clone().into()) };
        let images = Images { linux: Some(payload), ..Images::default() };
        let names = |asked: Asked| {
            let modules = GuestArg::with("linux cpus=2 name=first", &asked)?.modules(&images)?;
            Ok::<_, anyhow::Error>(modules.iter().map(|module| module.name().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names(Asked::default()).unwrap(), ["first", "initrd"]);
        let kernel = Some(kernel.into());
        assert_eq!(names(Asked { kernel, ..Asked::default() }).unwrap(), ["first"]);
        let string = GuestArg::new("linux").unwrap().string();
        assert!(
            string.starts_with("linux os=linux mem=512M device=dsa unsafe=INTEL-SA-01084 \"cmdline=console=ttyS0 "),
            "{string}"
        );
    }

    #[test]
    fn files_for_linux_that_the_hypervisor_would_refuse_are_named() {
        let (_first, kernel) = with_image("vmlinux", &image());
        let (_second, empty) = with_image("initrd", b"");
        let (_third, large) = with_image("initrd", &[0; 16 << 20]);
        let (_fourth, text) = with_image("vmlinuz", b"# a text");
        let refused = |kernel: Option<&str>, initrd: &str| {
            let asked = Asked { kernel: kernel.map(Into::into), initrd: Some(initrd.into()), ..Asked::default() };
            format!("{:#}", GuestArg::with("linux mem=16M", &asked).unwrap_err())
        };
        for words in [refused(Some(&kernel), &empty), refused(None, &empty)] {
            assert_eq!(words, format!("{empty}: the initrd is empty"));
        }
        let words = refused(Some(&kernel), &large);
        assert!(words.starts_with(&large) && words.ends_with("; give it more memory by mem="), "{words}");
        let words = refused(Some(&text), &large);
        assert!(words.starts_with(&text) && words.contains("Linux' bzImage"), "{words}");
    }

    #[test]
    fn guests_of_one_name_get_names_of_their_own() {
        let distinct = |texts: &[&str]| {
            let mut guests: Vec<_> = texts.iter().map(|text| GuestArg::new(text).unwrap()).collect();
            make_distinct(&mut guests).map(|()| guests.iter().map(|guest| guest.name().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(distinct(&["demo", "demo", "hello", "demo"]).unwrap(), ["demo", "demo-2", "hello", "demo-3"]);
        // A name that was asked for stays.
        assert_eq!(distinct(&["demo", "hello name=demo"]).unwrap(), ["demo-2", "demo"]);
        assert_eq!(distinct(&["demo", "demo", "hello name=demo-2"]).unwrap(), ["demo", "demo-3", "demo-2"]);
        let long = "abcdefghijklmnop";
        assert_eq!(distinct(&[long, long]).unwrap(), [long, "abcdefghijklmn-2"]);
        assert!(distinct(&["demo name=x", "hello name=x"]).is_err());
    }

    #[test]
    fn the_terminal_goes_to_the_guest_that_asks_for_it_else_to_the_first() {
        let given = |texts: &[&str]| {
            let mut guests: Vec<_> = texts.iter().map(|text| GuestArg::new(text).unwrap()).collect();
            let name = give_console(&mut guests)?;
            Ok::<_, anyhow::Error>((name, guests.iter().map(GuestArg::string).collect::<Vec<_>>()))
        };
        assert_eq!(
            given(&["demo mem=64M", "hello"]).unwrap(),
            ("demo".into(), vec!["demo mem=64M console=on".into(), "hello".into()])
        );
        assert_eq!(
            given(&["demo", "hello console=on"]).unwrap(),
            ("hello".into(), vec!["demo".into(), "hello console=on".into()])
        );
        assert_eq!(given(&["demo console=off"]).unwrap().1, ["demo console=on"]);
        assert!(given(&["demo console=on", "hello console=on"]).unwrap_err().to_string().contains("2 guests want it"));
        assert!(given(&[]).is_err());
    }

    #[test]
    fn a_guest_is_told_by_the_first_sentence_of_its_source() {
        assert_eq!(
            about("//! It does this,\n//! and that. More of it.\n//!\n//! Else.\nuse x;\n"),
            "It does this, and that"
        );
        assert_eq!((about("//! One.\n"), about("use x;\n")), ("One".to_owned(), String::new()));
        for (name, source) in crate::paths::Paths::find().unwrap().guests {
            assert!(!about(&fs::read_to_string(source).unwrap()).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_guest_that_is_none_of_ours_is_refused_with_those_that_are() {
        let known = BTreeMap::from([("demo".to_owned(), PathBuf::new()), ("hello".to_owned(), PathBuf::new())]);
        let check = |text: &str| check_ours(&[GuestArg::new(text).unwrap()], &known);
        assert!(check("demo mem=64M name=other").is_ok());
        let words = check("helo").unwrap_err().to_string();
        assert!(words.contains("demo, hello") && !words.contains("./helo"), "{words}");
        // Tests run in their package's folder.
        for text in ["Cargo.toml name=x", "Cargo.toml"] {
            let refused = GuestArg::new(text).and_then(|guest| check_ours(&[guest], &known));
            let words = format!("{:#}", refused.unwrap_err());
            assert!(words.contains("write ./Cargo.toml"), "{text}: {words}");
        }
    }
}
