use super::super::setup::init;
use super::*;
use std::fs;

const ADDRESS: &str = "a.example:7001";

/// A member's directory, and the row that `init` gave it.
fn member() -> (tempfile::TempDir, PathBuf, Member) {
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    let member = init(&data, ADDRESS, Policy::Manual).unwrap();
    (temp, data, member)
}

fn damage(data: &Path) {
    fs::remove_file(data.join(STORE_DIR).join("watermark")).unwrap();
}

fn asked() -> Asked {
    Asked { address: None, policy: None, even_if_sound: false }
}

/// The member began anew: the old store is aside as it was, the new one has another key, which is the one to be admitted.
fn check(data: &Path, old: &Member, new: &Member, aside: &Path) {
    assert_eq!((new.did, &new.address, new.policy), (old.did, &old.address, old.policy));
    assert_ne!(new.bls_key, old.bls_key);
    let (_, found) = Store::open(&data.join(STORE_DIR)).unwrap();
    assert_eq!((found.bls.public(), found.genesis), (new.bls_key, None), "pinned to nothing");
    assert_eq!(read_member(&data.join(MEMBER_FILE)).unwrap(), *new);
    assert!(aside.join("db").exists() && !aside.join("watermark").exists(), "as it was");
    assert!(!data.join(PLAN).exists());
}

#[test]
fn a_member_with_a_damaged_store_begins_anew_with_its_identity_and_a_fresh_key() {
    let (_temp, data, old) = member();
    damage(&data);
    let (new, aside) = rejoin(&data, asked()).unwrap();
    check(&data, &old, &new, &aside.unwrap());
    // And once more: the first store that was set aside stays where it is.
    damage(&data);
    let (newer, aside) = rejoin(&data, asked()).unwrap();
    check(&data, &new, &newer, aside.as_deref().unwrap());
    assert_eq!(aside.unwrap(), data.join("store.quarantined-2"));
    assert!(data.join("store.quarantined-1").join("db").exists());
}

#[test]
fn a_sound_store_is_not_given_up_by_accident() {
    let (_temp, data, old) = member();
    let refused = rejoin(&data, asked()).unwrap_err();
    assert!(refused.message.contains("opens soundly"), "{}", refused.message);
    assert!(refused.hint.unwrap().contains("--even-if-sound"));
    assert_eq!(read_member(&data.join(MEMBER_FILE)).unwrap(), old);
    assert!(!data.join(PLAN).exists());
    let (open, _) = Store::open(&data.join(STORE_DIR)).unwrap();
    let refused = rejoin(&data, Asked { even_if_sound: true, ..asked() }).unwrap_err();
    assert!(refused.message.contains("in use"), "{}", refused.message);
    drop(open);
    let (new, aside) = rejoin(&data, Asked { even_if_sound: true, ..asked() }).unwrap();
    assert_ne!(new.bls_key, old.bls_key);
    assert!(aside.unwrap().join("watermark").exists());
}

#[test]
fn a_member_without_its_store_or_public_file_begins_anew_too() {
    let (_temp, data, old) = member();
    fs::remove_dir_all(data.join(STORE_DIR)).unwrap();
    fs::remove_file(data.join(MEMBER_FILE)).unwrap();
    let refused = rejoin(&data, asked()).unwrap_err();
    assert!(refused.code == 2 && refused.hint.unwrap().contains("--address"), "{}", refused.message);
    let address = Some(ADDRESS.to_owned());
    let (new, aside) = rejoin(&data, Asked { address, policy: Some(Policy::Manual), ..asked() }).unwrap();
    assert_eq!((new.did, new.address, aside), (old.did, old.address, None));
    fs::remove_file(data.join(IDENTITY_FILE)).unwrap();
    assert!(rejoin(&data, asked()).unwrap_err().hint.unwrap().contains("identity"));
}

#[test]
fn a_rejoin_goes_on_wherever_it_was_interrupted() {
    for done in 0..=4 {
        let (_temp, data, old) = member();
        damage(&data);
        let plan = make_plan(&data, asked()).unwrap();
        output::replace(&data.join(PLAN), &serde_json::to_vec(&plan).unwrap()).unwrap();
        assert!(init(&data, ADDRESS, Policy::Auto).unwrap_err().hint.unwrap().contains("--rejoin"));
        let (store, public) = (data.join(STORE_DIR), data.join(MEMBER_FILE));
        let identity = Identity::load(&data.join(IDENTITY_FILE)).unwrap();
        let mut fresh = None;
        if done > 0 {
            fs::rename(&public, aside(&data, MEMBER_FILE, 1)).unwrap();
        }
        if done > 1 {
            Store::set_aside(&store, &aside(&data, STORE_DIR, 1)).unwrap();
        }
        if done > 2 {
            fresh = Some(fresh_store(&store, &identity).unwrap().public());
        }
        if let (Some(_), true) = (&fresh, done > 3) {
            let key = fresh_store(&store, &identity).unwrap();
            let row = row(&identity, &key, ADDRESS, Policy::Manual).unwrap();
            output::replace(&public, member_json(&row).unwrap().as_bytes()).unwrap();
        }
        let (new, aside) = rejoin(&data, asked()).unwrap();
        check(&data, &old, &new, &aside.unwrap());
        assert!(fresh.is_none_or(|fresh| fresh == new.bls_key), "what was made is used");
        assert!(!data.join("store.quarantined-2").exists());
    }
}
