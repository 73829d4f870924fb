// Package imasig verifies the signatures that Linux IMA keeps with files (extended attribute security.ima) and that
// its measurement list has in templates ima-sig and ima-sigv2.
//
// A [Key] is who may sign, as the operator names it; a [Signature] is what a file had, which the node controls
// and which proves nothing before [Key.Verify]. What it then proves is that the key's owner signed this content, once: not
// the path, not the version, not the time. An old file of the same signer, or one under another
// name, verifies as well.
//
// Sources: the kernel's security/integrity/integrity.h (struct signature_v2_hdr, enum evm_ima_xattr_type, struct ima_file_id),
// digsig_asymmetric.c (asymmetric_verify, calc_file_id_hash) and ima/ima_appraise.c (xattr_verify), and ima-evm-utils.
package imasig

import (
	"crypto"
	"encoding/binary"
	"fmt"
)

// Types and versions of a signature.
const (
	typeFile   = 0x03 // EVM_IMA_XATTR_DIGSIG
	typeVerity = 0x06 // IMA_VERITY_DIGSIG

	versionDigest = 2 // over the file's digest as it is
	versionID     = 3 // over the hash of a struct ima_file_id, which has the digest in it
)

// headSize is that of struct signature_v2_hdr: type, version, hash, key ID, size of what follows.
const headSize = 1 + 1 + 1 + 4 + 2

// MaxSize bounds a signature in bytes; that of an RSA key of 8192 bits has 1033.
const MaxSize = headSize + maxRSA/8

// hashes are the kernel's numbers of hash algorithms (include/uapi/linux/hash_info.h, enum hash_algo) that may be
// signed. SHA-1 and MD5 are not among them: two contents of one digest can be made, and one of them signed.
var hashes = map[byte]struct {
	name string
	hash crypto.Hash
}{4: {"sha256", crypto.SHA256}, 5: {"sha384", crypto.SHA384}, 6: {"sha512", crypto.SHA512}}

// Digest is a file's digest as IMA measured it.
type Digest struct {
	Alg    string // the kernel's name, "sha256"
	Sum    []byte
	Verity bool // the file's fs-verity digest, and not that of its content
}

// Signature is a parsed signature, unverified.
type Signature struct {
	// KeyID names the key by the last four bytes of its subject key identifier. It is a hint that no signature covers.
	KeyID   uint32
	kind    byte
	version byte
	hash    byte
	value   []byte
}

// Parse reads a signature: header, big-endian, and signature, and nothing after it. Version 1, the kernel's own
// encoding of RSA with SHA-1, and hashes that are no longer safe are refused. The Signature keeps parts of raw.
func Parse(raw []byte) (Signature, error) {
	if len(raw) > MaxSize {
		return Signature{}, fmt.Errorf("imasig: signature has %d bytes, more than the %d allowed", len(raw), MaxSize)
	}
	if len(raw) <= headSize {
		return Signature{}, fmt.Errorf("imasig: %d bytes are too few for a signature", len(raw))
	}
	s := Signature{kind: raw[0], version: raw[1], hash: raw[2], KeyID: binary.BigEndian.Uint32(raw[3:]), value: raw[headSize:]}
	if s.kind != typeFile && s.kind != typeVerity {
		return Signature{}, fmt.Errorf("imasig: attribute of type %d is no signature of a file", s.kind)
	}
	// A signature of an fs-verity digest has version 3, always (xattr_verify: "invalid-signature-version").
	if s.version != versionID && (s.version != versionDigest || s.kind == typeVerity) {
		return Signature{}, fmt.Errorf("imasig: version %d of signature type %d is unknown", s.version, s.kind)
	}
	if _, ok := hashes[s.hash]; !ok {
		return Signature{}, fmt.Errorf("imasig: hash algorithm %d of the kernel's list may not be signed; use sha256, sha384 or sha512", s.hash)
	}
	if n := binary.BigEndian.Uint16(raw[headSize-2:]); int(n) != len(s.value) {
		return Signature{}, fmt.Errorf("imasig: signature announces %d bytes and has %d", n, len(s.value))
	}
	return s, nil
}

// signed is what the signature must be over, hashed, if it is to vouch for a digest.
//
// Version 2 signs the digest itself, so the hash of the header is the digest's. Version 3 signs the hash, by the same
// algorithm, of struct ima_file_id: type, algorithm, digest without padding.
func (s Signature) signed(d Digest) ([]byte, crypto.Hash, error) {
	h := hashes[s.hash]
	switch {
	case d.Alg != h.name:
		return nil, 0, fmt.Errorf("imasig: a signature over %s does not vouch for a %.16s digest", h.name, d.Alg)
	case len(d.Sum) != h.hash.Size():
		return nil, 0, fmt.Errorf("imasig: %s digest has %d bytes, want %d", h.name, len(d.Sum), h.hash.Size())
	case d.Verity != (s.kind == typeVerity):
		return nil, 0, fmt.Errorf("imasig: a signature of type %d does not vouch for this kind of digest (fs-verity: %v)", s.kind, d.Verity)
	case s.version == versionDigest:
		return d.Sum, h.hash, nil
	}
	id := h.hash.New()
	id.Write([]byte{s.kind, s.hash})
	id.Write(d.Sum)
	return id.Sum(nil), h.hash, nil
}
