package assettag_test

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
)

var (
	now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	ekA = nodeclaim.EKHash(bytes.Repeat([]byte{0xaa}, 32))
	ekB = nodeclaim.EKHash(bytes.Repeat([]byte{0xbb}, 32))
)

func document() assettag.Document {
	return assettag.Document{
		Tags:      map[string]string{"country": "DE", "rack": "r_1.2"},
		EKHashes:  []string{ekA.String()},
		Serial:    5,
		NotBefore: now.Add(-time.Hour),
		NotAfter:  now.Add(time.Hour),
	}
}

// machine certifies any NV content: an attestation key that signs what it is told, so that
// only the checks behind the signature stand in the way.
type machine struct {
	soft   *tpmtest.SoftAK
	key    ak.Key
	nonce  []byte
	signer ed25519.PrivateKey
}

func newMachine(t testing.TB) machine {
	t.Helper()
	soft, err := tpmtest.NewSoftAK()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ak.Parse(soft.Public())
	if err != nil {
		t.Fatal(err)
	}
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return machine{soft: soft, key: key, nonce: bytes.Repeat([]byte{3}, 32), signer: signer}
}

func (m machine) expected() assettag.Expected {
	return assettag.Expected{
		Key: m.key, Nonce: m.nonce, EK: ekA, Signers: []crypto.PublicKey{m.signer.Public()},
		Now: now, Index: assettag.DefaultIndex, MinSerial: 5,
	}
}

func (m machine) issue(t testing.TB, d assettag.Document) []byte {
	t.Helper()
	signed, err := assettag.Sign(d, m.signer, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// certify signs an attestation of the NV index with this content.
func (m machine) certify(t testing.TB, signed, name, contents []byte, offset uint16) assettag.Evidence {
	t.Helper()
	attest := tpm2.Marshal(tpmtest.NVAttest(m.nonce, name, contents, offset))
	sig, err := m.soft.Sign(attest)
	if err != nil {
		t.Fatal(err)
	}
	return assettag.Evidence{Document: signed, Attest: attest, Signature: sig}
}

// evidence is right for a signed document.
func (m machine) evidence(t testing.TB, signed []byte) assettag.Evidence {
	t.Helper()
	digest := assettag.Digest(signed)
	return m.certify(t, signed, nvName(t, assettag.NVPublic(assettag.DefaultIndex, assettag.NVLocked)), digest[:], 0)
}

func nvName(t testing.TB, public tpm2.TPMSNVPublic) []byte {
	t.Helper()
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	return name.Buffer
}

func wantRefusal(t *testing.T, err error, check string) {
	t.Helper()
	var r *nodeclaim.Refusal
	if !errors.As(err, &r) || r.Check != check {
		t.Errorf("error is %v, want a refusal of %s", err, check)
	}
}

func TestGoodTag(t *testing.T) {
	m := newMachine(t)
	d := document()
	d.EKHashes = append(d.EKHashes, ekB.String())
	signed := m.issue(t, d)
	for _, ek := range []nodeclaim.EKHash{ekA, ekB} {
		want := m.expected()
		want.EK = ek
		tag, err := assettag.Verify(m.evidence(t, signed), want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d.Tags, tag.Tags()); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
		if tag.Serial() != 5 || !tag.NotAfter().Equal(d.NotAfter) || tag.Digest() != assettag.Digest(signed) || tag.IsZero() {
			t.Errorf("serial %d, not after %s, digest %x", tag.Serial(), tag.NotAfter(), tag.Digest())
		}
		tag.Tags()["country"] = "FR"
		if tag.Tags()["country"] != "DE" {
			t.Error("a tag can be changed from outside")
		}
	}
}

func TestThreat21_ForgedOrCopiedTagsAreRefused(t *testing.T) {
	m := newMachine(t)
	signed := m.issue(t, document())
	digest := assettag.Digest(signed)
	name := nvName(t, assettag.NVPublic(assettag.DefaultIndex, assettag.NVLocked))
	stranger := newMachine(t)
	other := document()
	other.Tags = map[string]string{"country": "FR"}
	for name, c := range map[string]struct {
		evidence assettag.Evidence
		expect   func(*assettag.Expected)
		check    string
	}{
		"root wrote another document's digest":       {m.certify(t, signed, name, digestOf(m.issue(t, other)), 0), nil, "tag.digest"},
		"root wrote zeroes":                          {m.certify(t, signed, name, make([]byte, 32), 0), nil, "tag.digest"},
		"the document was changed after signing":     {changed(m.evidence(t, signed), `DE`, `FR`), nil, "tag.digest"},
		"root signed a document of its own":          {m.evidence(t, stranger.issue(t, other)), nil, "tag.signer"},
		"the document was moved to another machine":  {m.evidence(t, signed), func(e *assettag.Expected) { e.EK = ekB }, "tag.ek"},
		"no EK was verified":                         {m.evidence(t, signed), func(e *assettag.Expected) { e.EK = nodeclaim.EKHash{} }, "tag.ek"},
		"another machine's AK certified it":          {stranger.evidence(t, signed), nil, "tag.signature"},
		"it was certified for another challenge":     {m.evidence(t, signed), func(e *assettag.Expected) { e.Nonce = []byte("other") }, "tag.nonce"},
		"a part of the index was certified":          {m.certify(t, signed, name, digest[:16], 0), nil, "tag.offset"},
		"the index was certified from an offset":     {m.certify(t, signed, name, digest[:], 1), nil, "tag.offset"},
		"nothing was certified":                      {m.certify(t, signed, name, nil, 0), nil, "tag.offset"},
		"there is no attestation":                    {assettag.Evidence{Document: signed}, nil, "tag.magic"},
		"there is no document":                       {m.certify(t, nil, name, digestOf(nil), 0), nil, "tag.envelope"},
		"the document is too large":                  {m.evidence(t, make([]byte, assettag.MaxDocumentSize+1)), nil, "tag.size"},
		"no signer is trusted":                       {m.evidence(t, signed), func(e *assettag.Expected) { e.Signers = nil }, "tag.signer"},
		"the challenge named an index out of range":  {m.evidence(t, signed), func(e *assettag.Expected) { e.Index = 0x01c00002 }, "tag.index"},
		"the challenge named another index":          {m.evidence(t, signed), func(e *assettag.Expected) { e.Index++ }, "tag.index"},
		"there is no attestation key":                {m.evidence(t, signed), func(e *assettag.Expected) { e.Key = ak.Key{} }, "tag.key"},
		"it is not valid yet":                        {m.evidence(t, signed), func(e *assettag.Expected) { e.Now = now.Add(-2 * time.Hour) }, "tag.notyet"},
		"it has expired":                             {m.evidence(t, signed), func(e *assettag.Expected) { e.Now = now.Add(2 * time.Hour) }, "tag.expired"},
		"the clock is unset, so that it looks young": {m.evidence(t, signed), func(e *assettag.Expected) { e.Now = time.Time{} }, "tag.notyet"},
	} {
		t.Run(name, func(t *testing.T) {
			want := m.expected()
			if c.expect != nil {
				c.expect(&want)
			}
			tag, err := assettag.Verify(c.evidence, want)
			wantRefusal(t, err, c.check)
			if !tag.IsZero() {
				t.Error("a refused tag has content")
			}
		})
	}
	t.Run("a quote instead of a certification", func(t *testing.T) {
		attest := tpm2.Marshal(tpmtest.QuoteAttest(m.nonce, digest[:], tpmtest.Select(nodeclaim.SHA256, 0)))
		sig, err := m.soft.Sign(attest)
		if err != nil {
			t.Fatal(err)
		}
		_, err = assettag.Verify(assettag.Evidence{Document: signed, Attest: attest, Signature: sig}, m.expected())
		wantRefusal(t, err, "tag.type")
	})
}

func digestOf(signed []byte) []byte {
	d := assettag.Digest(signed)
	return d[:]
}

// changed replaces text inside the envelope's payload.
func changed(ev assettag.Evidence, old, with string) assettag.Evidence {
	var e map[string]any
	if err := json.Unmarshal(ev.Document, &e); err != nil {
		panic(err)
	}
	payload, err := base64.StdEncoding.DecodeString(e["payload"].(string))
	if err != nil {
		panic(err)
	}
	again := base64.StdEncoding.EncodeToString(bytes.Replace(payload, []byte(old), []byte(with), 1))
	ev.Document = bytes.Replace(ev.Document, []byte(e["payload"].(string)), []byte(again), 1)
	return ev
}

// Root defined the index itself: each attribute, the size, the policy and the index are
// under the name.
func TestThreat21_IndexDefinedOtherwiseIsRefused(t *testing.T) {
	m := newMachine(t)
	signed := m.issue(t, document())
	digest := assettag.Digest(signed)
	for name, change := range map[string]func(*tpm2.TPMSNVPublic){
		"anybody may write":        func(p *tpm2.TPMSNVPublic) { p.Attributes.AuthWrite = true },
		"the platform may write":   func(p *tpm2.TPMSNVPublic) { p.Attributes.PPWrite = true },
		"a policy may write":       func(p *tpm2.TPMSNVPublic) { p.Attributes.PolicyWrite = true },
		"the owner may not write":  func(p *tpm2.TPMSNVPublic) { p.Attributes.OwnerWrite = false },
		"parts may be written":     func(p *tpm2.TPMSNVPublic) { p.Attributes.WriteAll = false },
		"it is an extend index":    func(p *tpm2.TPMSNVPublic) { p.Attributes.NT = tpm2.TPMNTExtend },
		"it cannot be locked":      func(p *tpm2.TPMSNVPublic) { p.Attributes.WriteDefine, p.Attributes.WriteLocked = false, false },
		"a reset unlocks it":       func(p *tpm2.TPMSNVPublic) { p.Attributes.WriteDefine, p.Attributes.WriteSTClear = false, true },
		"it is lost with a reset":  func(p *tpm2.TPMSNVPublic) { p.Attributes.Orderly = true },
		"it was never written":     func(p *tpm2.TPMSNVPublic) { p.Attributes.Written = false },
		"it counts wrong guesses":  func(p *tpm2.TPMSNVPublic) { p.Attributes.NoDA = false },
		"it has a policy":          func(p *tpm2.TPMSNVPublic) { p.AuthPolicy.Buffer = make([]byte, 32) },
		"it is longer":             func(p *tpm2.TPMSNVPublic) { p.DataSize = 64 },
		"it has another name hash": func(p *tpm2.TPMSNVPublic) { p.NameAlg = tpm2.TPMAlgSHA384 },
		"it is another index":      func(p *tpm2.TPMSNVPublic) { p.NVIndex++ },
	} {
		t.Run(name, func(t *testing.T) {
			public := assettag.NVPublic(assettag.DefaultIndex, assettag.NVLocked)
			change(&public)
			_, err := assettag.Verify(m.certify(t, signed, nvName(t, public), digest[:], 0), m.expected())
			wantRefusal(t, err, "tag.index")
		})
	}
}

// Its content is right, and whoever writes it next has nothing to delete first.
func TestThreat21_UnlockedIndexIsRefused(t *testing.T) {
	m := newMachine(t)
	signed := m.issue(t, document())
	digest := assettag.Digest(signed)
	_, err := assettag.Verify(m.certify(t, signed, nvName(t, assettag.NVPublic(assettag.DefaultIndex, assettag.NVWritten)), digest[:], 0), m.expected())
	wantRefusal(t, err, "tag.unlocked")
}

func TestThreat30_OlderTagPutBackIsRefused(t *testing.T) {
	m := newMachine(t)
	for serial, check := range map[uint64]string{1: "tag.serial", 4: "tag.serial", 5: "", 6: ""} {
		d := document()
		d.Serial = serial
		_, err := assettag.Verify(m.evidence(t, m.issue(t, d)), m.expected())
		if check == "" && err != nil {
			t.Errorf("serial %d: %v", serial, err)
		}
		if check != "" {
			wantRefusal(t, err, check)
		}
	}
}

func TestEveryFlippedBitIsRefused(t *testing.T) {
	m := newMachine(t)
	good := m.evidence(t, m.issue(t, document()))
	if _, err := assettag.Verify(good, m.expected()); err != nil {
		t.Fatal(err)
	}
	for name, field := range map[string]func(*assettag.Evidence) *[]byte{
		"document":  func(e *assettag.Evidence) *[]byte { return &e.Document },
		"attest":    func(e *assettag.Evidence) *[]byte { return &e.Attest },
		"signature": func(e *assettag.Evidence) *[]byte { return &e.Signature },
	} {
		for i := range 8 * len(*field(&good)) {
			ev := good
			b := field(&ev)
			*b = bytes.Clone(*b)
			(*b)[i/8] ^= 1 << (i % 8)
			if _, err := assettag.Verify(ev, m.expected()); err == nil {
				t.Errorf("%s: bit %d of byte %d may be flipped", name, i%8, i/8)
			}
		}
	}
}

// The signature must hold by itself too: the TPM certifies whatever root wrote.
func TestSignatureIsChecked(t *testing.T) {
	m := newMachine(t)
	signed := m.issue(t, document())
	var e struct {
		PayloadType string           `json:"payloadType"`
		Payload     []byte           `json:"payload"`
		Signatures  []map[string]any `json:"signatures"`
	}
	if err := json.Unmarshal(signed, &e); err != nil {
		t.Fatal(err)
	}
	id, err := assettag.KeyID(m.signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	bare := base64.StdEncoding.EncodeToString(ed25519.Sign(m.signer, e.Payload))
	payload := base64.StdEncoding.EncodeToString(e.Payload)
	env := func(kind, payload, sigs string) []byte {
		return []byte(`{"payloadType":"` + kind + `","payload":"` + payload + `","signatures":[` + sigs + `]}`)
	}
	sig := func(id, sig string) string { return `{"keyid":"` + id + `","sig":"` + sig + `"}` }
	right := sig(id, e.Signatures[0]["sig"].(string))
	for name, c := range map[string]struct {
		signed []byte
		check  string
	}{
		"a signature of the payload without its type": {env(assettag.PayloadType, payload, sig(id, bare)), "tag.signature"},
		"an empty signature":                          {env(assettag.PayloadType, payload, sig(id, "")), "tag.signature"},
		"no signature":                                {env(assettag.PayloadType, payload, ""), "tag.envelope"},
		"two signatures":                              {env(assettag.PayloadType, payload, right+","+right), "tag.envelope"},
		"another type":                                {env("application/json", payload, right), "tag.envelope"},
		"an unknown signer":                           {env(assettag.PayloadType, payload, sig("00", bare)), "tag.signer"},
		"an unknown key in the envelope":              {bytes.Replace(signed, []byte(`{"payload`), []byte(`{"x":1,"payload`), 1), "tag.envelope"},
		"a repeated key":                              {bytes.Replace(signed, []byte(`{"payloadType"`), []byte(`{"payloadType":"x","payloadType"`), 1), "tag.envelope"},
		"a key in capitals":                           {bytes.Replace(signed, []byte(`payloadType`), []byte(`PayloadType`), 1), "tag.envelope"},
		"white space":                                 {append([]byte(" "), signed...), "tag.envelope"},
		"trailing bytes":                              {append(bytes.Clone(signed), '\n'), "tag.envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := assettag.Verify(m.evidence(t, c.signed), m.expected())
			wantRefusal(t, err, c.check)
		})
	}
	if _, err := assettag.Verify(m.evidence(t, env(assettag.PayloadType, payload, right)), m.expected()); err != nil {
		t.Errorf("the envelope put together by hand: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	m := newMachine(f)
	good := m.evidence(f, m.issue(f, document()))
	f.Add(good.Document)
	f.Add([]byte(`{"payloadType":"","payload":"","signatures":[]}`))
	f.Fuzz(func(t *testing.T, signed []byte) {
		_, err := assettag.Verify(m.evidence(t, signed), m.expected())
		if err == nil && !bytes.Equal(signed, good.Document) {
			t.Errorf("%q is accepted", signed)
		}
	})
}
