use super::*;
use proptest::prelude::*;
use std::convert::Infallible;

/// A tree over leaves held in memory, every node computed from the definition.
struct Leaves(Vec<Digest>);

impl Nodes for Leaves {
    type Error = Infallible;

    fn node(&self, level: u8, position: u64) -> Result<Digest, Infallible> {
        let width = 1_usize << level;
        let start = position as usize * width;
        Ok(naive_root(&self.0[start..start + width]))
    }
}

/// `MTH` of RFC 9162, 2.1.1, word for word.
fn naive_root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(naive_split(leaves.len()));
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

fn naive_split(n: usize) -> usize {
    let mut k = 1;
    while k * 2 < n {
        k *= 2;
    }
    k
}

/// `PATH` of RFC 9162, 2.1.3.1, word for word.
fn naive_path(leaf: usize, leaves: &[Digest]) -> Vec<Digest> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let k = naive_split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut path, sibling) =
        if leaf < k { (naive_path(leaf, left), right) } else { (naive_path(leaf - k, right), left) };
    path.push(naive_root(sibling));
    path
}

/// `SUBPROOF` of RFC 9162, 2.1.4.1, word for word.
fn naive_consistency(old: usize, leaves: &[Digest], whole: bool) -> Vec<Digest> {
    if old == leaves.len() {
        return if whole { Vec::new() } else { vec![naive_root(leaves)] };
    }
    let k = naive_split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut path, sibling) = if old <= k {
        (naive_consistency(old, left, whole), right)
    } else {
        (naive_consistency(old - k, right, false), left)
    };
    path.push(naive_root(sibling));
    path
}

fn leaves(n: usize) -> Leaves {
    Leaves((0..n).map(|i| leaf_hash(&i.to_be_bytes())).collect())
}

fn hex(text: &str) -> Digest {
    text.parse().unwrap()
}

/// The vectors that certificate-transparency implementations share: eight leaves, roots of sizes 1 to 8.
#[test]
fn known_roots_of_the_reference_implementation() {
    let data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    for (data, root) in data.iter().zip(roots) {
        frontier.push(leaf_hash(&hex::decode(data).unwrap()));
        assert_eq!(frontier.root(), hex(root), "size {}", frontier.size());
    }
}

#[test]
fn paths_equal_the_definition_for_every_leaf_of_every_small_tree() {
    for n in 1..=40 {
        let tree = leaves(n);
        let root = naive_root(&tree.0);
        assert_eq!(super::root(&tree, n as u64), Ok(root));
        for (i, leaf) in tree.0.iter().enumerate() {
            let path = inclusion_path(&tree, i as u64, n as u64).unwrap();
            assert_eq!(path, naive_path(i, &tree.0));
            assert_eq!(root_from_path(*leaf, i as u64, n as u64, &path), Some(root));
        }
        for old in 1..=n {
            let path = consistency_path(&tree, old as u64, n as u64).unwrap();
            assert_eq!(path, naive_consistency(old, &tree.0, true));
            assert!(verify_consistency(old as u64, naive_root(&tree.0[..old]), n as u64, root, &path));
        }
    }
}

#[test]
fn the_empty_tree_is_a_prefix_of_every_tree_and_of_nothing_else() {
    let tree = leaves(5);
    let root = naive_root(&tree.0);
    assert!(verify_consistency(0, empty_root(), 5, root, &[]));
    assert!(verify_consistency(0, empty_root(), 0, empty_root(), &[]));
    assert!(!verify_consistency(0, root, 5, root, &[]));
    assert!(!verify_consistency(0, root, 0, root, &[]));
    assert!(!verify_consistency(5, root, 0, empty_root(), &[]));
}

#[test]
fn a_frontier_that_does_not_fit_its_size_does_not_decode() {
    let json = serde_json::to_string(&Frontier::default()).unwrap();
    assert!(serde_json::from_str::<Frontier>(&json).is_ok());
    assert!(serde_json::from_str::<Frontier>(&json.replace(":0", ":1")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_frontier_appends_and_restores_like_the_tree(n in 0_usize..300) {
        let tree = leaves(n);
        let mut frontier = Frontier::default();
        tree.0.iter().for_each(|leaf| frontier.push(*leaf));
        prop_assert_eq!(frontier.root(), naive_root(&tree.0));
        prop_assert_eq!(Frontier::of(&tree, n as u64).unwrap(), frontier);
    }

    #[test]
    fn a_path_proves_its_own_leaf_position_and_size_only(
        n in 2_u64..200, leaf in 0_u64..200, other in 0_u64..200, size in 0_u64..200,
    ) {
        let (leaf, other) = (leaf % n, other % n);
        let tree = leaves(n as usize);
        let root = naive_root(&tree.0);
        let path = inclusion_path(&tree, leaf, n).unwrap();
        let hash = tree.0[leaf as usize];
        prop_assert_eq!(root_from_path(hash, other, n, &path) == Some(root), other == leaf);
        prop_assert!(root_from_path(tree.0[((leaf + 1) % n) as usize], leaf, n, &path) != Some(root));
        prop_assert!(root_from_path(hash, leaf, n, &path[1..]).is_none_or(|r| r != root));
        let longer = [path.as_slice(), &[root]].concat();
        prop_assert_eq!(root_from_path(hash, leaf, n, &longer), None);
        // Another size may share the shape of the path, never with another root.
        if let Some(found) = root_from_path(hash, leaf, size, &path) {
            prop_assert!(found == root || size != n);
        }
    }

    #[test]
    fn a_consistency_path_proves_its_own_trees_only(new in 2_u64..200, old in 1_u64..200, flip in any::<prop::sample::Index>()) {
        let old = 1 + old % (new - 1);
        let tree = leaves(new as usize);
        let (old_root, new_root) = (naive_root(&tree.0[..old as usize]), naive_root(&tree.0));
        let path = consistency_path(&tree, old, new).unwrap();
        prop_assert!(verify_consistency(old, old_root, new, new_root, &path));
        prop_assert!(!verify_consistency(old, new_root, new, new_root, &path));
        prop_assert!(!verify_consistency(old, old_root, new, old_root, &path));
        let mut wrong = path.clone();
        wrong[flip.index(path.len())].0[0] ^= 1;
        prop_assert!(!verify_consistency(old, old_root, new, new_root, &wrong));
        prop_assert!(!verify_consistency(old, old_root, new, new_root, &path[1..]));
        prop_assert!(!verify_consistency(old, old_root, new, new_root, &[path.as_slice(), &[new_root]].concat()));
    }
}
