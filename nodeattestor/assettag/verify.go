package assettag

import (
	"bytes"
	"crypto"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Evidence is what the agent sends about its tag; nobody trusts these bytes yet.
type Evidence struct {
	Document  []byte // the signed envelope, byte for byte as it was issued
	Attest    []byte // TPMS_ATTEST of TPM2_NV_Certify over the whole index
	Signature []byte // TPMT_SIGNATURE over Attest
}

// Expected is what the server knows about the challenge and what it accepts.
type Expected struct {
	Key       ak.Key             // the AK that signed this challenge's quotes
	Nonce     []byte             // the nonce of this challenge
	EK        nodeclaim.EKHash   // the verified EK
	Signers   []crypto.PublicKey // who may issue tags
	Now       time.Time
	Index     uint32 // NV index that the challenge named
	MinSerial uint64 // highest serial seen for this machine, 0 when none was
	Revoked   Revocations
}

// Tag is a verified tag. Only Verify makes one.
type Tag struct {
	doc    Document
	digest [DigestSize]byte
}

// Tags is a copy of the verified facts.
func (t Tag) Tags() map[string]string { return maps.Clone(t.doc.Tags) }

// Serial is the tag's serial, which the caller remembers as the highest seen.
func (t Tag) Serial() uint64 { return t.doc.Serial }

// NotAfter is the end of the tag's validity.
func (t Tag) NotAfter() time.Time { return t.doc.NotAfter }

// EKHashes are all EKs of the machine that the tag is for.
func (t Tag) EKHashes() []string { return slices.Clone(t.doc.EKHashes) }

// Digest is the SHA-256 that the TPM certified.
func (t Tag) Digest() [DigestSize]byte { return t.digest }

// IsZero reports whether the tag never came from Verify.
func (t Tag) IsZero() bool { return t.doc.Serial == 0 }

// Verify decides whether the tag is this machine's, in this order. The agent controls
// all of ev; root on the machine usually controls the NV index too.
//
//  1. size cap of the document;
//  2. the NV_Certify statement: sizes, strict parse, magic, type TPM_ST_ATTEST_NV, scheme,
//     signature by the same AK, same nonce (ak.Key.Open; TPM 2.0 Part 3, 31.16 TPM2_NV_Certify);
//  3. the certified name is that of the expected index, written and locked, attributes,
//     policy and size included (Part 2, 10.12.8 TPMS_NV_CERTIFY_INFO; Part 1, 14);
//  4. offset 0 and the whole content;
//  5. the content is the digest of exactly these document bytes;
//  6. a trusted signer signed the envelope; then a strict parse of what was signed;
//  7. the EK is one of the machine's;
//  8. the operator has not revoked it, under any of the machine's EKs;
//  9. time: notBefore <= now <= notAfter;
//  10. serial: not below the highest seen (CheckSerial).
//
// Errors are *nodeclaim.Refusal with a check that starts with "tag.".
func Verify(ev Evidence, want Expected) (Tag, error) {
	if len(ev.Document) > MaxDocumentSize {
		return Tag{}, refuse("size", "the tag document has %d bytes, more than the %d allowed", len(ev.Document), MaxDocumentSize)
	}
	digest := Digest(ev.Document)
	if err := checkCertified(ev, want, digest); err != nil { // 2 to 5
		return Tag{}, err
	}
	doc, err := open(ev.Document, want.Signers) // 6
	if err != nil {
		return Tag{}, err
	}
	if want.EK.IsZero() || !slices.Contains(doc.EKHashes, want.EK.String()) { // 7
		return Tag{}, refuse("ek", "the tag is for another machine: EK %s is not among its %d", want.EK, len(doc.EKHashes))
	}
	if err := want.Revoked.check(doc); err != nil { // 8
		return Tag{}, err
	}
	if want.Now.Before(doc.NotBefore) { // 9
		return Tag{}, refuse("notyet", "the tag is valid from %s, it is %s", doc.NotBefore.Format(time.RFC3339), want.Now.UTC().Format(time.RFC3339))
	}
	if want.Now.After(doc.NotAfter) {
		return Tag{}, refuse("expired", "the tag was valid until %s, it is %s; issue and provision a new one", doc.NotAfter.Format(time.RFC3339), want.Now.UTC().Format(time.RFC3339))
	}
	if err := CheckSerial(doc.Serial, want.MinSerial); err != nil { // 10
		return Tag{}, err
	}
	return Tag{doc: doc, digest: digest}, nil
}

// CheckSerial refuses, by tag.serial, a tag with a serial below the highest that its machine has shown, or above what a
// NodeTrust can hold. Whoever has the TPM's owner authorisation can put an older tag back, which somebody signed once.
func CheckSerial(serial, shown uint64) error {
	if serial > math.MaxInt64 {
		return refuse("serial", "the tag's serial is above 2^63-1")
	}
	if serial < shown {
		return refuse("serial", "the tag has serial %d, this machine has shown %d: an older tag was put back", serial, shown)
	}
	return nil
}

func checkCertified(ev Evidence, want Expected, digest [DigestSize]byte) error {
	st, err := want.Key.Open(ak.NVCertify, ev.Attest, ev.Signature, want.Nonce)
	if err != nil {
		return err
	}
	attest := st.Attest()
	info, err := attest.Attested.NV()
	if err != nil {
		return refuse("type", "the attestation certifies no NV index: %v", err)
	}
	name, err := NVName(want.Index)
	if err != nil {
		return refuse("index", "the challenge itself is wrong: %v", err)
	}
	if !bytes.Equal(info.IndexName.Buffer, name) {
		if unlocked, err := nvName(want.Index, NVWritten); err == nil && bytes.Equal(info.IndexName.Buffer, unlocked) {
			return refuse("unlocked", "NV index 0x%08x holds a tag that is not locked; provision it anew", want.Index)
		}
		return refuse("index", "the TPM certified an NV index named %x; index 0x%08x with the tag's attributes is %x; provision the tag anew", info.IndexName.Buffer, want.Index, name)
	}
	if info.Offset != 0 || len(info.NVContents.Buffer) != DigestSize {
		return refuse("offset", "the TPM certified %d bytes at offset %d, wanted all %d", len(info.NVContents.Buffer), info.Offset, DigestSize)
	}
	if !bytes.Equal(info.NVContents.Buffer, digest[:]) {
		return refuse("digest", "the tag document hashes to %x, the TPM holds %x", digest, info.NVContents.Buffer)
	}
	return nil
}

func refuse(check, format string, args ...any) *nodeclaim.Refusal {
	return nodeclaim.Refuse("tag."+check, fmt.Sprintf(format, args...))
}
