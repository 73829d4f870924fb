package plugintest_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// inPayload edits the payload, inResponse the answer to the challenge.
func inPayload(t testing.TB, f func(*evidence.Payload)) tamper {
	return func(round int, msg []byte) []byte {
		if round != 0 {
			return msg
		}
		p := must2(evidence.ParsePayload(msg))(t)
		f(p)
		return must2(p.Marshal())(t)
	}
}

func inResponse(t testing.TB, f func(*evidence.Response)) tamper {
	return func(round int, msg []byte) []byte {
		if round != 1 {
			return msg
		}
		r := must2(evidence.ParseResponse(msg))(t)
		f(r)
		return must2(r.Marshal())(t)
	}
}

// fleet is a good and trusted machine "victim", with a second machine of the same maker.
type fleet struct {
	ca             *tpmtest.CA
	victim, other  *machine
	s              *server
	name, namedToo string
}

func newFleet(t *testing.T, prefix string) *fleet {
	t.Helper()
	f := &fleet{ca: must2(tpmtest.NewCA())(t), name: prefix + "-victim", namedToo: prefix + "-other"}
	f.victim, f.other = newMachine(t, f.ca, "good").serve(t, ""), newMachine(t, f.ca, "good").serve(t, "")
	newNode(t, f.name)
	newNode(t, f.namedToo)
	f.s = newServer(t, serverOptions{ca: f.ca, reference: f.victim.capture(t, "good"),
		inventory: map[string][]string{f.name: f.victim.ekHex, f.namedToo: f.other.ekHex}})
	_, err := attest(t, f.victim, f.s, nil)
	check(t, err)
	nodeTrust(t, f.name, trusted)
	return f
}

// untouched asserts that the victim's verdict stands and the other has none.
func (f *fleet) untouched(t testing.TB, before v1alpha1.NodeTrustSpec) {
	t.Helper()
	noNodeTrust(t, f.namedToo)
	if after := nodeTrust(t, f.name, trusted); after.AttestedAt != before.AttestedAt || after.EKHash != before.EKHash {
		t.Errorf("the victim's NodeTrust changed: %+v", after)
	}
}

func TestThreat01_AnothersEKCertificateWithOwnKey(t *testing.T) {
	for _, template := range []string{"L-1", "L-2"} { // RSA and ECC
		t.Run(template, func(t *testing.T) {
			f := newFleet(t, "threat01-"+strings.ToLower(template))
			before := nodeTrust(t, f.name, trusted)
			for _, e := range must2(f.victim.dev.Endorsements(t.Context()))(t) {
				if e.Template != template {
					continue
				}
				_, err := attest(t, f.other, f.s, inPayload(t, func(p *evidence.Payload) {
					p.EKPublic = must2(f.other.dev.Endorsement(t.Context()))(t).Public
					p.EKCertificates = e.Certs
				}))
				refused(t, f.s, err, audit.Unproved, "ek.")
				// Without the attacker's key beside it, the challenge is for the victim's TPM alone.
				_, err = attest(t, f.other, f.s, inPayload(t, func(p *evidence.Payload) { p.EKPublic, p.EKCertificates = nil, e.Certs }))
				if err == nil || !strings.Contains(err.Error(), "activate credential") {
					t.Fatalf("got %v, want the attacker's TPM unable to activate the victim's credential", err)
				}
			}
			f.untouched(t, before)
		})
	}
}

func TestThreat02_OnlyWhatWasSignedIsParsed(t *testing.T) {
	f := newFleet(t, "threat02")
	before := nodeTrust(t, f.name, trusted)
	changes := map[string]func(*evidence.Response){
		"a byte behind the quote":         func(r *evidence.Response) { r.Quotes[0].Attest = append(r.Quotes[0].Attest, 0) },
		"a byte behind the signature":     func(r *evidence.Response) { r.Quotes[0].Signature = append(r.Quotes[0].Signature, 0) },
		"a second copy behind the quote":  func(r *evidence.Response) { r.Quotes[0].Attest = append(r.Quotes[0].Attest, r.Quotes[0].Attest...) },
		"another firmware version inside": func(r *evidence.Response) { r.Quotes[0].Attest[len(r.Quotes[0].Attest)-60] ^= 1 },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			_, err := attest(t, f.other, f.s, inResponse(t, change))
			refused(t, f.s, err, audit.Unproved, "quote.")
		})
	}
	f.untouched(t, before)
}

func TestThreat03_FewerPCRsThanAskedFor(t *testing.T) {
	f := newFleet(t, "threat03")
	before := nodeTrust(t, f.name, trusted)
	_, err := attest(t, f.other, f.s, inResponse(t, func(r *evidence.Response) { r.Quotes[0].Values = r.Quotes[0].Values[:14] }))
	refused(t, f.s, err, audit.Unproved, "quote.values")
	_, err = attest(t, f.other, f.s, inResponse(t, func(r *evidence.Response) { r.Quotes = append(r.Quotes, r.Quotes[0]) }))
	refused(t, f.s, err, audit.Unproved, "quote.count")
	f.untouched(t, before)
}

func TestThreat04_ValuesThatNoQuoteCovers(t *testing.T) {
	f := newFleet(t, "threat04")
	before := nodeTrust(t, f.name, trusted)
	_, err := attest(t, f.other, f.s, inResponse(t, func(r *evidence.Response) {
		r.Quotes[0].Values[4], r.Quotes[0].Values[5] = r.Quotes[0].Values[5], r.Quotes[0].Values[4]
	}))
	refused(t, f.s, err, audit.Unproved, "quote.composite")
	_, err = attest(t, f.other, f.s, inResponse(t, func(r *evidence.Response) {
		r.Quotes[0].Bank = 0x0004 // sha1
		for i := range r.Quotes[0].Values {
			r.Quotes[0].Values[i] = r.Quotes[0].Values[i][:20]
		}
	}))
	refused(t, f.s, err, audit.Unproved, "quote.values")
	f.untouched(t, before)
}

func TestThreat05_AKThatIsNoAttestationKey(t *testing.T) {
	f := newFleet(t, "threat05")
	before := nodeTrust(t, f.name, trusted)
	public, _, err := tpmtest.UnrestrictedSign(f.other.tpm, []byte("anything"))
	check(t, err)
	_, err = attest(t, f.other, f.s, inPayload(t, func(p *evidence.Payload) { p.AKPublic = public }))
	refused(t, f.s, err, audit.Unproved, "ak.restricted")
	soft := must2(tpmtest.NewSoftAK())(t)
	_, err = attest(t, f.other, f.s, inPayload(t, func(p *evidence.Payload) { p.AKPublic = soft.Public() }))
	if err == nil || !strings.Contains(err.Error(), "activate credential") {
		t.Fatalf("got %v: a key that is in no TPM must not be activated", err)
	}
	f.untouched(t, before)
}

func TestThreat06_AnOldAnswerToANewChallenge(t *testing.T) {
	f := newFleet(t, "threat06")
	var recorded []byte
	var nonces [][]byte
	_, err := attest(t, f.victim, f.s, inResponse(t, func(r *evidence.Response) {
		recorded = must2(r.Marshal())(t)
		nonces = append(nonces, r.Quotes[0].Attest)
	}))
	check(t, err)
	before := nodeTrust(t, f.name, trusted)
	_, err = attest(t, f.victim, f.s, func(round int, msg []byte) []byte {
		if round == 1 {
			return recorded
		}
		return msg
	})
	refused(t, f.s, err, audit.Unproved, "activation.secret")
	_, err = attest(t, f.victim, f.s, inResponse(t, func(r *evidence.Response) {
		old := must2(evidence.ParseResponse(recorded))(t)
		r.Quotes = old.Quotes // a fresh secret, but an old quote
	}))
	refused(t, f.s, err, audit.Unproved, "quote.nonce")
	if after := nodeTrust(t, f.name, trusted); after.AttestedAt != before.AttestedAt {
		t.Error("a replay changed the verdict")
	}
}

func TestThreat08_ForgedEventsInTheLog(t *testing.T) {
	f := newFleet(t, "threat08")
	log := f.other.read(t, "binary_bios_measurements")
	check(t, os.WriteFile(f.other.file("binary_bios_measurements"), append(bytes.Clone(log), log[len(log)-64:]...), 0o600))
	_, err := attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Untrusted, "eventlog.")
	nodeTrust(t, f.namedToo, untrusted)
	nodeTrust(t, f.name, trusted)
}

func TestThreat11_TheTailOfTheIMALogIsDropped(t *testing.T) {
	f := newFleet(t, "threat11")
	f.other.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	log := f.other.read(t, "binary_runtime_measurements")
	clean := f.victim.read(t, "binary_runtime_measurements")
	check(t, os.WriteFile(f.other.file("binary_runtime_measurements"), log[:len(clean)], 0o600))
	_, err := attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Untrusted, "ima.pcr")
	check(t, os.WriteFile(f.other.file("binary_runtime_measurements"), log, 0o600))
	_, err = attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Untrusted, "ima.file")
}

func TestThreat20_AnotherMachineUnderAKnownNodesName(t *testing.T) {
	f := newFleet(t, "threat20")
	before := nodeTrust(t, f.name, trusted)
	// An inventory edited so that the attacker's EK stands under the victim's name.
	check(t, f.s.configure(t, serverOptions{ca: f.ca, reference: f.victim.capture(t, "good"), inventory: map[string][]string{f.name: f.other.ekHex}}))
	_, err := attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Unproved, "node.binding")
	f.untouched(t, before)
	// And evidence that the victim's name must not suffer from.
	f.other.measure(t, tpmtest.IMAEntry("/usr/bin/backdoor", []byte("evil")))
	_, err = attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Unproved, "node.binding")
	f.untouched(t, before)
}

func TestThreat20_AnEKThatTheInventoryDoesNotKnow(t *testing.T) {
	f := newFleet(t, "threat20b")
	check(t, f.s.configure(t, serverOptions{ca: f.ca, reference: f.victim.capture(t, "good"), inventory: map[string][]string{f.name: f.victim.ekHex}}))
	_, err := attest(t, f.other, f.s, nil)
	refused(t, f.s, err, audit.Unproved, "node.unbound")
	noNodeTrust(t, f.namedToo)
}

func TestThreat21_TagsForgedOrCopied(t *testing.T) {
	ca, key, stranger := must2(tpmtest.NewCA())(t), newTagKey(t), newTagKey(t)
	m := newMachine(t, ca, "good")
	other := newMachine(t, ca, "good")
	m.provision(t, key.tag(t, m.ekHex, 2, "DE"))
	m.serve(t, fmt.Sprintf("tag_document = %q", m.file("tag.json")))
	newNode(t, "threat21")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"threat21": m.ekHex}, tagSigner: key.pem})
	attrs, err := attest(t, m, s, nil)
	check(t, err)
	if !strings.Contains(strings.Join(attrs.SelectorValues, " "), "tag:country:de") {
		t.Fatalf("selectors %v lack the tag", attrs.SelectorValues)
	}
	if nt := nodeTrust(t, "threat21", trusted); nt.Tags["country"] != "DE" || nt.TagSerial == nil || *nt.TagSerial != 2 {
		t.Fatalf("NodeTrust has tags %v, serial %v", nt.Tags, nt.TagSerial)
	}
	cases := []struct {
		name, check string
		provision   func()
	}{
		{"the document of another machine, its digest written by root", "tag.ek", func() { m.provision(t, key.tag(t, other.ekHex, 3, "FR")) }},
		{"a document of the attacker's own signer", "tag.signer", func() { m.provision(t, stranger.tag(t, m.ekHex, 3, "FR")) }},
		{"another document beside an untouched NV index", "tag.digest", func() {
			m.provision(t, key.tag(t, m.ekHex, 3, "DE"))
			check(t, os.WriteFile(m.file("tag.json"), key.tag(t, m.ekHex, 4, "FR"), 0o600))
		}},
		{"a tag that has expired", "tag.expired", func() {
			past := time.Now().Add(-time.Hour)
			m.provision(t, must2(assettag.Sign(assettag.Document{Tags: map[string]string{"country": "FR"}, EKHashes: m.ekHex, Serial: 4,
				NotBefore: past.Add(-time.Hour), NotAfter: past}, key, rand.Reader))(t))
		}},
		{"a document that nobody signed", "tag.envelope", func() {
			m.provision(t, must2(assettag.Document{Tags: map[string]string{"country": "FR"}, EKHashes: m.ekHex, Serial: 4,
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}.Marshal())(t))
		}},
		{"an older tag put back", "tag.serial", func() { m.provision(t, key.tag(t, m.ekHex, 1, "FR")) }},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			tc.provision()
			_, err := attest(t, m, s, nil)
			refused(t, s, err, audit.Untrusted, tc.check)
			if nt := nodeTrust(t, "threat21", untrusted); nt.Tags["country"] == "FR" {
				t.Error("a forged tag reached the NodeTrust")
			}
		})
	}
	t.Run("no tag where one is required", func(t *testing.T) {
		_, err := attest(t, m, s, inPayload(t, func(p *evidence.Payload) { p.HasTag = false }))
		refused(t, s, err, audit.Unproved, "payload.tag")
	})
	if assettag.DefaultIndex == 0 {
		t.Error("the tag's index is not configured")
	}
}

func TestThreat22_NothingProvedMeansNothingOpens(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "threat22")
	good := m.capture(t, "good")
	inv := map[string][]string{"threat22": m.ekHex}
	s := newServer(t, serverOptions{ca: ca, reference: good, inventory: inv})
	t.Run("an expired reference set", func(t *testing.T) {
		expired := append([]byte("notAfter: 2020-01-01T00:00:00Z\n"), good...)
		check(t, s.configure(t, serverOptions{ca: ca, reference: expired, inventory: inv}))
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "reference.expired")
	})
	t.Run("a reference set that cannot be parsed is refused at start", func(t *testing.T) {
		err := s.configure(t, serverOptions{ca: ca, reference: []byte("name: good\nboot: [1,"), inventory: inv})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "references") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("no reference set at all is refused at start", func(t *testing.T) {
		if err := s.configure(t, serverOptions{ca: ca, inventory: inv}); status.Code(err) != codes.InvalidArgument {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a configuration that was refused leaves the last one in force", func(t *testing.T) {
		_, err := attest(t, m, s, nil)
		refused(t, s, err, audit.Untrusted, "reference.expired")
	})
	if nt := nodeTrust(t, "threat22", untrusted); nt.Reference != "" {
		t.Errorf("an untrusted node names reference %q", nt.Reference)
	}
}

func TestThreat23_StrangersCannotLowerAVerdict(t *testing.T) {
	f := newFleet(t, "threat23")
	before := nodeTrust(t, f.name, trusted)
	attempts := map[string]tamper{
		"garbage":                   func(int, []byte) []byte { return []byte("garbage") },
		"the victim's certificate":  inPayload(t, func(p *evidence.Payload) { p.EKCertificates = must2(f.victim.dev.Endorsement(t.Context()))(t).Certs }),
		"a wrong secret":            inResponse(t, func(r *evidence.Response) { r.Secret[0] ^= 1 }),
		"a flipped quote":           inResponse(t, func(r *evidence.Response) { r.Quotes[0].Attest[20] ^= 1 }),
		"a message cut in the half": func(round int, b []byte) []byte { return b[:len(b)/2] },
	}
	for name, change := range attempts {
		t.Run(name, func(t *testing.T) {
			if _, err := attest(t, f.other, f.s, change); err == nil {
				t.Fatal("accepted")
			}
		})
	}
	f.untouched(t, before)
	t.Run("a stream that ends after a valid quote is inconclusive", func(t *testing.T) {
		_, err := attest(t, f.victim, f.s, inResponse(t, func(r *evidence.Response) { r.Chunks[0].Data = r.Chunks[0].Data[:5] }))
		if code := status.Code(err); code != codes.Unavailable {
			t.Fatalf("got %v", err)
		}
		time.Sleep(300 * time.Millisecond)
		f.untouched(t, before)
	})
}
