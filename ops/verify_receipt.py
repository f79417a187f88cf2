#!/usr/bin/env python3
"""Verifies Concordat receipts against a genesis file that you trust.

    pip install py_ecc==8.0.0
    python3 verify_receipt.py genesis.json RECEIPT…

Written from src/docs/formats.md alone (the numbers of its section 8 stand in the comments); shares no code with
Concordat. Prints a line per receipt; exits 0 if all verify and 1 if any does not. Pure Python: seconds per receipt.
"""

import base64
import ipaddress
import json
import re
import sys
from hashlib import sha256

try:
    from py_ecc.bls import G2ProofOfPossession as bls
except ImportError:
    sys.exit("this verifier needs py_ecc: pip install py_ecc==8.0.0")

KINDS = ["noop", "proposal", "aborted", "epoch", "epoch_final", "snapshot_mark", "snapshot_manifest"]
REASONS = [None, "rejected", "expired"]
ROLES = ["voter", "learner"]
POLICIES = ["auto", "rules", "manual"]
RULES = ["majority", "supermajority"]
INFINITY = b"\xc0" + bytes(95)


class Flaw(Exception):
    """Why a file proves nothing."""


def need(condition, flaw):
    if not condition:
        raise Flaw(flaw)


def H(*parts):
    return sha256(b"".join(parts)).digest()


def u(n, width):
    return n.to_bytes(width, "big")


def short(b):
    return u(len(b), 2) + b


def long(b):
    return u(len(b), 4) + b


def base58(data):
    alphabet, n, text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", int.from_bytes(data, "big"), ""
    while n:
        n, digit = divmod(n, 58)
        text = alphabet[digit] + text
    return text  # the prefix 0xed leaves no leading zeros


def did(key):
    return "did:key:z" + base58(b"\xed\x01" + key)


def did_key(text):
    n = 0
    for c in text.removeprefix("did:key:z"):
        n = 58 * n + "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz".index(c)
    key = u(n, 34)[2:]
    need(did(key) == text, f"{text!r} is no DID")
    return key


class Reader:
    """Section 1."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def fixed(self, n):
        need(self.at + n <= len(self.data), "the bytes end inside a field")
        self.at += n
        return self.data[self.at - n : self.at]

    def u(self, width):
        return int.from_bytes(self.fixed(width), "big")

    def below(self, bound, what):
        n = self.u(1)
        need(n < bound, f"{what} holds an unknown value")
        return n

    def flag(self):
        return self.below(2, "a flag") == 1

    def sized(self, width, bound):
        n = self.u(width)
        need(n <= bound, "a length is beyond its bound")
        return self.fixed(n)

    def short(self, bound):
        return self.sized(2, bound)

    def text(self, bound):
        return self.short(bound).decode("utf-8")

    def path(self):
        n = self.u(1)
        need(n <= 64, "a path is too long")
        return [self.fixed(32) for _ in range(n)]

    def tag(self, tag):
        need(self.fixed(16) == tag, f"not a structure tagged {tag.decode()}")

    def end(self):
        need(self.at == len(self.data), "bytes are left over")


# --- signatures (section 2) ---

proved = set()  # receipts of one log repeat the same tables and joint certificates


def check_possession(key, proof):
    if (key, proof) not in proved:
        need(bls.KeyValidate(key), "not a valid BLS public key")
        need(proof != INFINITY and bls.PopVerify(key, proof), "a proof of possession does not verify")
        proved.add((key, proof))


def check_aggregate(keys, message, aggregate, what):
    known = (tuple(keys), message, aggregate)
    if known not in proved:
        ok = keys and aggregate != INFINITY and bls.FastAggregateVerify(keys, message, aggregate)
        need(ok, f"the aggregate signature of the {what} does not verify")
        proved.add(known)


def x_of(key):
    """What equal and opposite keys share."""
    return bytes([key[0] & 0xDF]) + key[1:]


# --- tables and genesis (sections 3 and 4) ---


def is_address(text):
    host, colon, port = text.rpartition(":")
    if not colon or len(text) > 256 or not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return False
    if host.startswith("[") and host.endswith("]"):
        try:
            return "%" not in host and bool(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            return False
    return re.fullmatch(r"[A-Za-z0-9._-]+", host) is not None


class Table:
    def __init__(self, members):
        need(1 <= len(members) <= 100, "a table has 1 to 100 members")
        dids = [m["did"] for m in members]
        need(dids == sorted(set(dids)), "members are not sorted by DID, or one stands in two rows")
        need(len({x_of(m["bls_key"]) for m in members}) == len(members), "two keys are equal or opposite")
        self.members = members
        self.voters = [m for m in members if m["role"] == "voter"]
        need(self.voters, "a table has no voter")
        for m in members:
            need(is_address(m["address"]), f"{m['address']!r} is no address")
            check_possession(m["bls_key"], m["possession"])

    def encode(self):
        rows = [
            m["did"] + m["bls_key"] + m["possession"] + short(m["address"].encode())
            + u(ROLES.index(m["role"]), 1) + u(POLICIES.index(m["policy"]), 1)
            for m in self.members
        ]  # fmt: skip
        return b"concordat:table1" + u(len(rows), 2) + b"".join(rows)

    @classmethod
    def decode(cls, data):
        r = Reader(data)
        r.tag(b"concordat:table1")
        members = [
            {
                "did": r.fixed(32), "bls_key": r.fixed(48), "possession": r.fixed(96), "address": r.text(256),
                "role": ROLES[r.below(2, "role")], "policy": POLICIES[r.below(3, "policy")],
            }
            for _ in range(r.u(2))
        ]  # fmt: skip
        r.end()
        return cls(members)

    def chosen(self, bitmap):
        """The voters of a set, once its length and padding are checked."""
        n = len(self.voters)
        number = int.from_bytes(bitmap, "little")
        need(len(bitmap) == (n + 7) // 8 and number >> n == 0, f"a signer set does not fit {n} voters")
        return [m for i, m in enumerate(self.voters) if number >> i & 1]

    def key_of(self, did):
        return next((m["bls_key"] for m in self.members if m["did"] == did), None)


def strict(pairs):
    need(len({k for k, _ in pairs}) == len(pairs), "a JSON field is repeated")
    return dict(pairs)


def exactly(value, fields, what):
    need(isinstance(value, dict) and set(value) == set(fields.split()), f"{what} does not have exactly its fields")
    return value


class Epoch:
    """A table in force: its number, its hash, its quorum."""

    def __init__(self, number, digest, table, rule):
        self.number, self.hash, self.table, self.rule = number, digest, table, rule
        n = len(table.voters)
        self.quorum = (n // 2 if rule == "majority" else 2 * n // 3) + 1


def is_version(value, number):
    # In Python True and 1.0 equal 1; in the file format they are something else.
    return type(value) is int and value == number


def whole(text, length):
    data = bytes.fromhex(text)
    need(len(data) == length, "a hash, key or signature has the wrong length")
    return data


def read_succession(s):
    """What a genesis says of the cluster that it succeeds: its bytes there, and how many entries that cluster had."""
    exactly(s, "genesis_id snapshot tree certified missing surveys reason", "the succession")
    m = exactly(s["snapshot"], "index term epoch proposed_at root state bytes chunks_root", "the snapshot")
    tree, surveys = exactly(s["tree"], "size peaks", "the tree"), b""
    peaks = [whole(peak, 32) for peak in tree["peaks"]]
    for y in s["surveys"]:
        exactly(y, "genesis_id member bls_key last_term size root certified signature", "a survey")
        need(y["genesis_id"] == s["genesis_id"] and y["size"] <= m["index"], "a survey is not of the predecessor")
        surveys += did_key(y["member"]) + whole(y["bls_key"], 48) + u(y["last_term"], 8) + u(y["size"], 8)
        surveys += whole(y["root"], 32) + u(y["certified"], 8) + whole(y["signature"], 96)
    need(m["epoch"] == 0 and tree["size"] == m["index"] > 0 and s["certified"] <= m["index"], "a bad succession")
    need(len(peaks) == m["index"].bit_count(), "not the subtrees of so many entries")
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = H(b"\x01", peak, root)
    need(root == whole(m["root"], 32), "the subtrees are not those of the predecessor's root")
    manifest = b"\x01" + b"".join(u(m[k], 8) for k in ("index", "term", "epoch", "proposed_at"))
    manifest += root + whole(m["state"], 32) + u(m["bytes"], 8) + whole(m["chunks_root"], 32)
    missing = b"".join(did_key(d) for d in s["missing"])
    data = b"concordat:succ:1" + whole(s["genesis_id"], 32) + short(manifest) + u(len(peaks), 1) + b"".join(peaks)
    data += u(s["certified"], 8) + u(len(s["missing"]), 2) + missing + u(len(s["surveys"]), 2) + surveys
    return long(data + short(s["reason"].encode())), m["index"]


def read_genesis(text):
    g = json.loads(text, object_pairs_hook=strict)
    succeeds = g.pop("succeeds", None) if isinstance(g, dict) else None
    exactly(g, "concordat_genesis genesis_id name quorum members", "the genesis")
    need(is_version(g["concordat_genesis"], 1), "unknown genesis version")
    need(re.fullmatch(r"[a-z0-9.-]{1,64}", g["name"]) and g["quorum"] in RULES, "bad name or quorum rule")
    members = []
    for m in g["members"]:
        exactly(m, "did bls_key possession address role policy", "a member")
        key, proof = bytes.fromhex(m["bls_key"]), bytes.fromhex(m["possession"])
        need(len(key) == 48 and len(proof) == 96, "a key or proof has the wrong length")
        need(m["role"] in ROLES and m["policy"] in POLICIES, "unknown role or policy")
        members.append({**m, "did": did_key(m["did"]), "bls_key": key, "possession": proof})
    table = Table(sorted(members, key=lambda m: m["did"]))
    rule = u(RULES.index(g["quorum"]), 1)
    last, begins_after = (b"", 0) if succeeds is None else read_succession(succeeds)
    genesis_id = H(b"concordat:gene:1", short(g["name"].encode()), rule, long(table.encode()), last)
    need(genesis_id.hex() == g["genesis_id"].lower(), "genesis_id is not that of the contents")
    genesis = Epoch(0, genesis_id, table, g["quorum"])
    genesis.begins_after = begins_after
    return genesis


# --- entries and the tree (section 5) ---


def read_side(r):
    members = r.short(13)
    aggregate = r.fixed(96) if r.flag() else None
    need((aggregate is not None) == any(members), "an aggregate without voters, or the other way round")
    return {"members": members, "aggregate": aggregate}


def read_header(data):
    need(len(data) <= 1024, "a header is too long")
    r = Reader(data)
    need(r.u(1) == 1, "unknown header version")
    h = {"kind": KINDS[r.below(7, "kind")], "index": r.u(8), "term": r.u(8), "epoch": r.u(8)}
    h["proposal_id"] = (r.u(8), r.u(8), r.fixed(32)) if r.flag() else None
    h["request_digest"], h["proposed_at"], h["required_quorum"] = r.fixed(32), r.u(8), r.u(2)
    h["abort_reason"] = REASONS[r.below(3, "abort_reason")]
    h["tally"] = {"grants": read_side(r), "denials": read_side(r)} if r.flag() else None
    h["payload_len"], h["payload_hash"] = r.u(4), r.fixed(32)
    r.end()
    proposed = h["kind"] in ("proposal", "aborted")
    need(h["index"] > 0 and h["payload_len"] <= 65536, "index or payload_len is out of range")
    need((h["proposal_id"] is not None) == proposed, "a proposal id where there is none, or none where there is one")
    need(proposed or h["request_digest"] == bytes(32), "a request where there is none")
    need((h["required_quorum"] > 0) == proposed, "required_quorum does not fit the kind")
    need((h["abort_reason"] is not None) == (h["kind"] == "aborted"), "abort_reason does not fit the kind")
    need(not h["tally"] or h["kind"] not in ("noop", "epoch_final", "snapshot_mark"), "a tally does not fit the kind")
    h["leaf"] = H(b"\0", data)
    return h


def read_body(r, header):
    salt = r.fixed(16)
    request = {"client": r.text(128), "request_id": r.text(128), "deadline_ms": r.u(8)} if r.flag() else None
    payload = r.sized(4, 65536)
    digest = bytes(32)
    if request:
        names = [request["client"].encode(), request["request_id"].encode()]
        need(all(names), "a request without names")
        key = H(b"concordat:reqkey", long(names[0]), long(names[1]))
        digest = H(b"concordat:reqdig", key, u(request["deadline_ms"], 8))
    same = (request is not None) == (header["proposal_id"] is not None) and digest == header["request_digest"]
    need(same, "the request does not match the header")
    if header["kind"] == "aborted":
        need(payload == b"" and salt == bytes(16), "an aborted entry publishes payload or salt")
    else:
        same = len(payload) == header["payload_len"] and H(salt, payload) == header["payload_hash"]
        need(same, "the payload does not match the header")
    return {"salt": salt, "request": request, "payload": payload}


def check_inclusion(header, path, head, what):
    f, s, r = header["index"] - 1, head["size"] - 1, header["leaf"]
    ok = f <= s
    for p in path:
        ok = ok and s > 0
        if f & 1 or f == s:
            r = H(b"\1", p, r)
            while f and not f & 1:
                f, s = f >> 1, s >> 1
        else:
            r = H(b"\1", r, p)
        f, s = f >> 1, s >> 1
    need(ok and s == 0 and r == head["root"], f"the {what} is not in the certified tree")


# --- certificates (section 6) ---


def read_certificate(data):
    r = Reader(data)
    r.tag(b"concordat:hcert1")
    head = {"term": r.u(8), "size": r.u(8), "root": r.fixed(32)}
    halves = [
        {"epoch": r.u(8), "epoch_hash": r.fixed(32), "signers": r.short(13), "aggregate": r.fixed(96)}
        for _ in range(r.u(1))
    ]
    r.end()
    need(len(halves) in (1, 2), "a certificate has one or two halves")
    return {"head": head, "halves": halves}


def check_certificate(certificate, genesis_id, current, following, what):
    tables = [(current, current.hash)]
    if following:
        tables = [(current, H(b"concordat:joint1", current.hash, following.hash)), (following, following.hash)]
    head, halves = certificate["head"], certificate["halves"]
    need(len(halves) == len(tables), f"the {what} has {len(halves)} halves where {len(tables)} are needed")
    for half, (epoch, digest) in zip(halves, tables):
        named = (half["epoch"], half["epoch_hash"]) == (epoch.number, digest)
        need(named, f"the {what} is signed under another epoch")
        signers = epoch.table.chosen(half["signers"])
        need(len(signers) >= epoch.quorum, f"the {what} has too few signers")
        statement = b"concordat:head:1" + genesis_id + u(epoch.number, 8) + digest
        statement += u(head["term"], 8) + u(head["size"], 8) + head["root"]
        check_aggregate([m["bls_key"] for m in signers], statement, half["aggregate"], what)


# --- receipts (sections 7 and 8) ---


def read_receipt(data):
    r = Reader(data)
    r.tag(b"concordat:rcpt:1")
    receipt = {"header": read_header(r.short(1024))}
    receipt["body"] = read_body(r, receipt["header"]) if r.flag() else None
    receipt["path"] = r.path()
    receipt["certificate"] = read_certificate(r.short(65535))
    receipt["last_header"], receipt["last_path"] = read_header(r.short(1024)), r.path()
    receipt["steps"] = [read_step(r) for _ in range(r.u(2))]
    r.end()
    return receipt


def read_step(r):
    entry = Reader(r.sized(4, 98304))
    header = read_header(entry.short(1024))
    body = read_body(entry, header)
    entry.end()
    return {"header": header, "body": body, "joint": read_certificate(r.short(65535)), "path": r.path()}


def check_votes(h, epoch, genesis_id):
    """8. Returns who granted and who denied, by the tally."""
    n, q, required, tally = len(epoch.table.voters), epoch.quorum, h["required_quorum"], h["tally"]
    sides = {"grants": [], "denials": []}
    if tally:
        sides = {name: epoch.table.chosen(tally[name]["members"]) for name in sides}
        need(not any(m in sides["denials"] for m in sides["grants"]), "someone granted and denied")
    grants, denials = len(sides["grants"]), len(sides["denials"])
    if h["kind"] == "proposal":
        need(q <= required <= n, "required_quorum is out of range")
        if tally:
            need(grants >= required, f"{grants} grants where {required} are required")
        else:
            automatic = all(m["policy"] == "auto" for m in epoch.table.voters)
            need(required == q and automatic, "the entry needed a ballot and records none")
    elif h["kind"] == "aborted":
        impossible = n - denials < required
        rejected, expired = bool(tally) and impossible, not impossible and grants < required
        need(rejected if h["abort_reason"] == "rejected" else expired, "the votes contradict the reason of the abort")
    elif h["kind"] == "snapshot_manifest" or tally:
        need(tally and grants >= q, "too few grants")
    for name, granted in (("grants", b"\1"), ("denials", b"\0")):
        if sides[name]:
            statement = b"concordat:vote:1" + genesis_id + u(epoch.number, 8) + epoch.hash
            statement += h["request_digest"] + h["payload_hash"] + u(required, 2) + granted
            check_aggregate([m["bls_key"] for m in sides[name]], statement, tally[name]["aggregate"], name)
    return sides["grants"], sides["denials"]


def check_behind(header, step):
    head = step["joint"]["head"]
    behind = header["index"] > head["size"] and header["term"] >= head["term"]
    behind = behind and header["proposed_at"] >= step["header"]["proposed_at"]
    need(behind, "an entry lies before the change that set its epoch")


def walk(steps, genesis):
    """5."""
    epochs, seen = [genesis], set()
    for k, step in enumerate(steps):
        current, header, joint = epochs[k], step["header"], step["joint"]
        need(header["kind"] == "epoch" and header["epoch"] == k, f"step {k} is no change of epoch {k}")
        need(header["term"] <= joint["head"]["term"], f"step {k} is of a later term than its head")
        check_inclusion(header, step["path"], joint["head"], f"entry of step {k}")
        check_votes(header, current, genesis.hash)
        following = Epoch(k + 1, header["leaf"], Table.decode(step["body"]["payload"]), genesis.rule)
        seen |= {x_of(m["bls_key"]) for m in current.table.members}
        for m in following.table.members:
            kept = current.table.key_of(m["did"]) == m["bls_key"]
            need(kept or x_of(m["bls_key"]) not in seen, f"step {k} brings a retired key back")
        check_certificate(joint, genesis.hash, current, following, f"joint certificate of step {k}")
        if k > 0:
            check_behind(header, steps[k - 1])
        epochs.append(following)
    return epochs


def verify(receipt, genesis):
    """Returns the granters, or raises the first flaw."""
    header, last, certificate, steps = (receipt[k] for k in ("header", "last_header", "certificate", "steps"))
    head = certificate["head"]
    need(header["index"] > genesis.begins_after, "the entry is of the cluster that this one succeeds")
    need((last["index"], last["term"]) == (head["size"], head["term"]), "the last header is not the head's")  # 2
    for field in ("index", "term", "epoch", "proposed_at"):
        need(header[field] <= last[field], f"the entry's {field} is beyond the head's")
    check_inclusion(header, receipt["path"], head, "entry")  # 3
    check_inclusion(last, receipt["last_path"], head, "last header")
    in_flight = len(certificate["halves"]) == 2
    need(len(steps) == last["epoch"] + in_flight, "the chain does not have exactly the steps it needs")  # 4
    epochs = walk(steps, genesis)
    for h in (header, last):  # 6
        if h["epoch"] > 0:
            check_behind(h, steps[h["epoch"] - 1])
    current, following = epochs[last["epoch"]], epochs[-1] if in_flight else None
    check_certificate(certificate, genesis.hash, current, following, "head certificate")  # 7
    granted, denied = check_votes(header, epochs[header["epoch"]], genesis.hash)  # 8
    if header["kind"] == "proposal" and not header["tally"]:
        need(header["epoch"] == last["epoch"], "granted by signing, but under a head of a later epoch")
        granted = current.table.chosen(certificate["halves"][0]["signers"])
    return granted, denied


# --- the JSON form (section 7) ---


def show(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [show(v) for v in value]
    return {k: show(v) for k, v in value.items()} if isinstance(value, dict) else value


def show_header(h):
    order = "index term epoch kind proposal_id request_digest proposed_at required_quorum abort_reason tally"
    shown = {k: show(h[k]) for k in [*order.split(), "payload_len", "payload_hash"]}
    if h["proposal_id"]:
        term, seq, origin = h["proposal_id"]
        shown["proposal_id"] = f"{term}-{seq}-{did(origin)}"
    return shown


def show_body(body):
    if body is None:
        return None
    try:
        payload = body["payload"].decode()
    except UnicodeDecodeError:
        payload = None
    return {"salt": body["salt"].hex(), "request": body["request"], "payload": payload}


def render(data, r):
    shown = {
        "concordat_receipt": 1, "receipt": base64.b64encode(data).decode(),
        "header": show_header(r["header"]), "body": show_body(r["body"]), "path": show(r["path"]),
        "certificate": show(r["certificate"]), "last_header": show_header(r["last_header"]),
        "last_path": show(r["last_path"]),
        "chain": [
            {"header": show_header(s["header"]), "joint": show(s["joint"]), "path": show(s["path"])}
            for s in r["steps"]
        ],
    }  # fmt: skip
    return (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()


def load(file):
    if file.startswith(b"concordat:rcpt:"):
        return read_receipt(file)
    shown = json.loads(file, object_pairs_hook=strict)
    need(isinstance(shown, dict) and is_version(shown.get("concordat_receipt"), 1), "unknown receipt version")
    data = base64.b64decode(shown["receipt"], validate=True)
    receipt = read_receipt(data)
    need(render(data, receipt) == file, "the fields shown do not match the receipt's bytes")
    return receipt


def main(arguments):
    if len(arguments) < 2:
        print("usage: verify_receipt.py genesis.json RECEIPT…", file=sys.stderr)
        return 2
    # Whatever a hostile file makes the standard library raise is a flaw of that file.
    wrong = (Flaw, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError)
    try:
        with open(arguments[0], encoding="utf-8") as f:
            genesis = read_genesis(f.read())
    except wrong as e:
        print(f"{arguments[0]}: not a genesis: {e}")
        return 1
    failed = False
    for name in arguments[1:]:
        try:
            with open(name, "rb") as f:
                receipt = load(f.read())
            granted, denied = verify(receipt, genesis)
        except wrong as e:
            failed = True
            print(f"{name}: REFUSED: {e}")
            continue
        h, by = receipt["header"], ", ".join(did(m["did"]) for m in granted) or "nobody"
        against = f", denied by {', '.join(did(m['did']) for m in denied)}" if denied else ""
        when = receipt["last_header"]["proposed_at"]
        print(f"{name}: OK index {h['index']}: {h['kind']}, committed_at {when}, granted by {by}{against}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
