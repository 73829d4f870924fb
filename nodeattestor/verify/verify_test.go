package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

var now = time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)

var selection = nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}

// seen records the randomness that a server drew: a test that stands in for a TPM knows
// the secret without decrypting it.
type seen struct{ drawn []byte }

func (s *seen) Read(p []byte) (int, error) {
	n, err := rand.Read(p)
	s.drawn = append(s.drawn, p[:n]...)
	return n, err
}

// bench is a node in software: an EK certificate, an AK that signs what it is told, and
// the recorded boot "good". It checks the order and the state of an appraisal; that a
// real TPM never behaves so is what test/plugintest is for.
type bench struct {
	policy  verify.Policy
	payload evidence.Payload
	ak      *tpmtest.SoftAK
	values  [][]byte
	log     []byte
	list    []byte
	user    []byte // systemd's log
	reboots uint32 // TPM resets so far
	resumes uint32 // TPM restarts so far
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newBench(t testing.TB) *bench {
	t.Helper()
	dir := filepath.Join("..", "..", "test", "vectors", "measured-boots", "good")
	b := &bench{ak: must(tpmtest.NewSoftAK())(t),
		log:  must(os.ReadFile(filepath.Join(dir, "binary_bios_measurements")))(t),
		list: must(os.ReadFile(filepath.Join(dir, "binary_runtime_measurements")))(t)}
	ca := must(tpmtest.NewCA())(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	cert := must(ca.IssueEK(key.Public(), tpmtest.EKOptions{}))(t)
	b.payload = evidence.Payload{EKCertificates: [][]byte{cert, ca.Issuer().Raw}, AKPublic: b.ak.Public(),
		Banks: []nodeclaim.HashAlg{nodeclaim.SHA256}, HasEventLog: true, HasIMA: true}
	replayed := must(must(eventlog.Parse(b.log))(t).Unverified(nodeclaim.SHA256))(t)
	all := ima.Unverified(b.list, nodeclaim.SHA256, ima.Options{})
	replayed[10] = all[len(all)-1]
	for _, i := range selection.PCRs {
		b.values = append(b.values, replayed[i])
	}
	b.policy = verify.Policy{Anchors: ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate},
		Selections: []nodeclaim.Selection{selection}, IMA: true, References: b.references(t)}
	if err := b.policy.Validate(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) references(t testing.TB) reference.Sets {
	t.Helper()
	q := b.quote(t, []byte("capture"))
	values := map[int][]byte{}
	for i, pcr := range selection.PCRs {
		values[pcr] = q.Values[i]
	}
	quoted := must(quote.Verify(must(ak.Parse(b.ak.Public()))(t), quote.Evidence{Attest: q.Attest, Signature: q.Signature, Values: values}, []byte("capture"), selection))(t)
	boot := must(eventlog.Replay(b.log, quoted.PCRs))(t)
	r := ima.NewReplayer(quoted.PCRs, ima.Options{})
	must(r.Write(b.list))(t)
	r.Booted(boot.Booted)
	list := must(r.Finish())(t)
	set := must(reference.Capture("good", reference.Evidence{Boot: boot, PCRs: quoted.PCRs, IMA: &list}))(t)
	return must(reference.NewSets(set))(t)
}

// quote signs the boot's PCRs as a primary key of the endorsement hierarchy would.
func (b *bench) quote(t testing.TB, nonce []byte) evidence.Quote {
	t.Helper()
	return b.quoteIn(t, nonce, 0x4000000B)
}

func (b *bench) quoteIn(t testing.TB, nonce []byte, hierarchy uint32) evidence.Quote {
	t.Helper()
	composite := sha256.Sum256(bytes.Join(b.values, nil))
	a := tpmtest.QuoteAttest(nonce, composite[:], tpmtest.Select(nodeclaim.SHA256, selection.PCRs...))
	a.ClockInfo.ResetCount += b.reboots
	a.ClockInfo.RestartCount += b.resumes
	name := must(ak.Parse(b.ak.Public()))(t).Name()
	qn := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, hierarchy), name...))
	a.QualifiedSigner = tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, qn[:]...)}
	msg := tpm2.Marshal(a)
	return evidence.Quote{Bank: nodeclaim.SHA256, Attest: msg, Signature: must(b.ak.Sign(msg))(t), Values: b.values}
}

// begin runs Begin and the honest answer to its challenge.
func (b *bench) begin(t testing.TB) (*verify.Challenge, *evidence.Response) {
	t.Helper()
	return b.beginAgain(t, nil)
}

// beginAgain is begin at a server that remembers an earlier appraisal.
func (b *bench) beginAgain(t testing.TB, earlier verify.Earlier) (*verify.Challenge, *evidence.Response) {
	t.Helper()
	source := &seen{}
	c, err := verify.Begin(&b.payload, &b.policy, earlier, now, source)
	if err != nil {
		t.Fatal(err)
	}
	return c, &evidence.Response{Secret: source.drawn[:evidence.SecretSize], Quotes: []evidence.Quote{b.quote(t, c.Message().Nonce)}}
}

// named takes the steps to a node that binds by inventory.
func (b *bench) named(t testing.TB, c *verify.Challenge, r *evidence.Response) *verify.Named {
	t.Helper()
	return must(must(c.Prove(r, now))(t).Named(""))(t)
}

// bound takes the steps up to the logs.
func (b *bench) bound(t testing.TB) *verify.Bound {
	t.Helper()
	c, r := b.begin(t)
	return must(b.named(t, c, r).Bind(verify.Known{}))(t)
}

func chunk(t testing.TB, kind evidence.LogKind, offset uint64, raw []byte, final bool) *evidence.Chunk {
	t.Helper()
	return must(evidence.NewChunk(kind, offset, raw, final))(t)
}

// feed answers every request for a chunk in pieces of size bytes.
func (b *bench) feed(t testing.TB, size int) verify.Ask {
	return func(next *evidence.Continue) (*evidence.Chunk, error) {
		log := map[evidence.LogKind][]byte{evidence.EventLog: b.log, evidence.UserspaceLog: b.user, evidence.IMALog: b.list}[next.Log]
		from := min(int(next.Offset), len(log))
		end := min(from+size, len(log))
		return chunk(t, next.Log, uint64(from), log[from:end], end == len(log)), nil
	}
}

// read sends the logs in pieces of size bytes.
func (b *bench) read(t testing.TB, size int) (*verify.Complete, error) {
	t.Helper()
	return b.bound(t).Read(nil, b.feed(t, size))
}

// appraise runs a whole attestation, with the logs in pieces of size bytes.
func (b *bench) appraise(t testing.TB, size int) verify.Appraisal {
	t.Helper()
	return must(b.read(t, size))(t).Finish(now)
}

// wantCheck asserts one refusal by the given check.
func wantCheck(t testing.TB, err error, id string) {
	t.Helper()
	r := nodeclaim.AsRefusals(err)
	if len(r) == 0 || r[0].Check != id {
		t.Fatalf("got %v, want a refusal by %s", err, id)
	}
}

func TestTheWholeOrderYieldsClaims(t *testing.T) {
	for _, size := range []int{evidence.MaxChunkRaw, 700, 64} {
		b := newBench(t)
		a := b.appraise(t, size)
		if a.Outcome() != verify.Trusted || a.Err != nil || len(a.Refusals) > 0 {
			t.Fatalf("%s: %v", a.Outcome(), a.Err)
		}
		if c := a.Claims; c.Reference != "good" || c.IMA != nodeclaim.IMAClean || c.SecureBoot != nodeclaim.False || c.EK != a.EK || !c.EKCertified || c.ResetCount != 2 || c.Weak {
			t.Errorf("claims %+v", c)
		}
		if !strings.HasPrefix(a.EvidenceDigest, "sha256:") {
			t.Errorf("evidence digest %q", a.EvidenceDigest)
		}
	}
}

func TestBeginRefusesWhatCanNeverSucceed(t *testing.T) {
	cases := map[string]struct {
		change func(*bench)
		check  string
	}{
		"a bank that the TPM lacks":     {func(b *bench) { b.payload.Banks = []nodeclaim.HashAlg{nodeclaim.SHA1} }, "payload.bank"},
		"no event log":                  {func(b *bench) { b.payload.HasEventLog = false }, "payload.eventlog"},
		"no IMA log where one is due":   {func(b *bench) { b.payload.HasIMA = false }, "payload.ima"},
		"no tag where one is due":       {func(b *bench) { b.policy.Tag.Required = true }, "payload.tag"},
		"an EK under no root":           {func(b *bench) { b.policy.Anchors.Roots = nil }, "ek.chain"},
		"an EK that is in no inventory": {func(b *bench) { b.policy.Anchors.Mode = ek.Both }, "ek.inventory"},
		"an AK that is not restricted":  {func(b *bench) { b.ak.Area.ObjectAttributes.Restricted = false; b.payload.AKPublic = b.ak.Public() }, "ak.restricted"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			tc.change(b)
			_, err := verify.Begin(&b.payload, &b.policy, nil, now, rand.Reader)
			wantCheck(t, err, tc.check)
		})
	}
}

func TestProveRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(testing.TB, *bench, *evidence.Response)
		at     time.Time
		check  string
	}{
		"a wrong secret":     {func(_ testing.TB, _ *bench, r *evidence.Response) { r.Secret = bytes.Repeat([]byte{1}, 32) }, now, "activation.secret"},
		"a shorter secret":   {func(_ testing.TB, _ *bench, r *evidence.Response) { r.Secret = r.Secret[:31] }, now, "activation.secret"},
		"no quote":           {func(_ testing.TB, _ *bench, r *evidence.Response) { r.Quotes = nil }, now, "quote.count"},
		"too few values":     {func(_ testing.TB, _ *bench, r *evidence.Response) { r.Quotes[0].Values = r.Quotes[0].Values[1:] }, now, "quote.values"},
		"another bank":       {func(_ testing.TB, _ *bench, r *evidence.Response) { r.Quotes[0].Bank = nodeclaim.SHA384 }, now, "quote.values"},
		"another nonce":      {func(t testing.TB, b *bench, r *evidence.Response) { r.Quotes[0] = b.quote(t, make([]byte, 32)) }, now, "quote.nonce"},
		"an answer too late": {func(testing.TB, *bench, *evidence.Response) {}, now.Add(verify.DefaultChallengeTTL + time.Second), "challenge.expired"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c, r := b.begin(t)
			tc.change(t, b, r)
			p, err := c.Prove(r, tc.at)
			wantCheck(t, err, tc.check)
			if a := c.Stop(err); a.Bound || a.Proved() || a.Outcome() != verify.Unproved {
				t.Errorf("refused and yet proved: %+v", a)
			}
			if p != nil {
				t.Error("an unproved EK could be bound")
			}
		})
	}
}

func TestAnAKOutsideTheEndorsementHierarchyIsRefused(t *testing.T) {
	b := newBench(t)
	source := &seen{}
	c := must(verify.Begin(&b.payload, &b.policy, nil, now, source))(t)
	r := &evidence.Response{Secret: source.drawn[:evidence.SecretSize], Quotes: []evidence.Quote{b.quoteIn(t, c.Message().Nonce, 0x40000001)}}
	_, err := c.Prove(r, now)
	wantCheck(t, err, "quote.hierarchy")
}

func TestThreat06_AChallengeIsAnsweredOnce(t *testing.T) {
	b := newBench(t)
	c, r := b.begin(t)
	must(c.Prove(r, now))(t)
	_, err := c.Prove(r, now)
	wantCheck(t, err, "challenge.used")
}

func TestThreat06_NoncesAndSecretsAreFresh(t *testing.T) {
	b := newBench(t)
	drawn := map[string]bool{}
	for range 500 {
		source := &seen{}
		nonce := must(verify.Begin(&b.payload, &b.policy, nil, now, source))(t).Message().Nonce
		if len(nonce) != 32 {
			t.Fatalf("nonce of %d bytes", len(nonce))
		}
		for _, v := range [][]byte{nonce, source.drawn[:evidence.SecretSize]} {
			if drawn[hex.EncodeToString(v)] {
				t.Fatal("a nonce or secret was used twice")
			}
			drawn[hex.EncodeToString(v)] = true
		}
	}
	if c, err := verify.Begin(&b.payload, &b.policy, nil, now, io.LimitReader(rand.Reader, 40)); err == nil || c != nil {
		t.Error("randomness ran out and nobody noticed")
	}
}

func TestThreat20_BindingIsCheckedAfterTheQuote(t *testing.T) {
	b := newBench(t)
	c, r := b.begin(t)
	n := b.named(t, c, r)
	bound, err := n.Bind(verify.Known{EKHash: strings.Repeat("00", 32)})
	wantCheck(t, err, "node.binding")
	if a := n.Stop(err); a.Bound || a.Outcome() != verify.Unproved || !a.Proved() {
		t.Errorf("evidence of another EK may lower the node's verdict: %+v", a)
	}
	if bound != nil {
		t.Error("a log may be read for a node that is not this EK's")
	}
}

func TestAnUnboundEKIsRefusedWhereVerdictsAreWritten(t *testing.T) {
	b := newBench(t)
	b.policy.RequireNode = true
	c, r := b.begin(t)
	_, err := b.named(t, c, r).Bind(verify.Known{})
	wantCheck(t, err, "node.unbound")
}

func TestARevokedEKIsProvedBad(t *testing.T) {
	b := newBench(t)
	c, r := b.begin(t)
	b.policy.Revoked = map[nodeclaim.EKHash]string{c.EK(): "stolen in October"}
	bound := must(b.named(t, c, r).Bind(verify.Known{}))(t)
	_, err := bound.Read(nil, func(*evidence.Continue) (*evidence.Chunk, error) {
		t.Error("a log of a revoked machine was asked for")
		return nil, io.EOF
	})
	for _, err := range []error{bound.Revoked(), err} {
		wantCheck(t, err, "ek.revoked")
		if a := bound.Stop(err); a.Outcome() != verify.Untrusted || !strings.Contains(err.Error(), "stolen in October") {
			t.Errorf("%s, %v; a revoked EK must lower its node's verdict, with the reason", a.Outcome(), err)
		}
	}
}

func TestChunksOutOfPlaceAreErrorsAndNoRefusals(t *testing.T) {
	b := newBench(t)
	cases := map[string]*evidence.Chunk{
		"a gap":            chunk(t, evidence.EventLog, 5, b.log[5:], true),
		"empty, not final": chunk(t, evidence.EventLog, 0, nil, false),
		"not zstd":         {Log: evidence.EventLog, Data: []byte("plain")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			ask := func(*evidence.Continue) (*evidence.Chunk, error) { return c, nil }
			for _, first := range [][]evidence.Chunk{nil, {*c}} {
				bound := b.bound(t)
				complete, err := bound.Read(first, ask)
				if err == nil || len(nodeclaim.AsRefusals(err)) > 0 || !errors.As(err, new(verify.Malformed)) {
					t.Fatalf("got %v; a malformed stream is inconclusive, not proof", err)
				}
				if a := bound.Stop(err); complete != nil || a.Outcome() != verify.Inconclusive {
					t.Errorf("finished without its logs: %s", a.Outcome())
				}
			}
		})
	}
	whole := *chunk(t, evidence.EventLog, 0, b.log, true)
	if _, err := b.bound(t).Read([]evidence.Chunk{whole, whole}, b.feed(t, 1000)); err == nil {
		t.Error("a log was sent twice")
	}
}

// TestWhatStopsTheReadingIsToldAsItIs: the server tells a full disk and a newer attestation apart
// from a bad chunk.
func TestWhatStopsTheReadingIsToldAsItIs(t *testing.T) {
	why := errors.New("the stream ended")
	bound := newBench(t).bound(t)
	_, err := bound.Read(nil, func(*evidence.Continue) (*evidence.Chunk, error) { return nil, why })
	if !errors.Is(err, why) || errors.As(err, new(verify.Malformed)) || bound.Stop(err).Outcome() != verify.Inconclusive {
		t.Errorf("got %v", err)
	}
}

// TestNothingButFinishMakesATrustedAppraisal: what a caller can put together by itself lets nobody
// in.
func TestNothingButFinishMakesATrustedAppraisal(t *testing.T) {
	b := newBench(t)
	c, r := b.begin(t)
	p := must(c.Prove(r, now))(t)
	n := must(p.Named(""))(t)
	bound := must(n.Bind(verify.Known{}))(t)
	trusted := b.appraise(t, 1000)
	for name, a := range map[string]verify.Appraisal{
		"the zero value": {}, "stopped for no reason": verify.Stop(nil), "a challenge stopped": c.Stop(nil), "a proved one stopped": p.Stop(nil),
		"a named one stopped": n.Stop(nil), "a bound one stopped": bound.Stop(nil), "one with claims": {Claims: trusted.Claims, Bound: true},
		"one that was doubted": trusted.Doubt(errors.New("the server's clock is wrong")),
	} {
		if a.Outcome() != verify.Inconclusive {
			t.Errorf("%s: %s", name, a.Outcome())
		}
	}
	if a := trusted.Doubt(nodeclaim.Refuse("x", "y")); a.Outcome() != verify.Inconclusive || a.Claims.Reference != "" || !a.Tag.IsZero() {
		t.Errorf("a doubt decides: %+v", a)
	}
}

func TestThreat24_LogsAreBounded(t *testing.T) {
	refused := func(t *testing.T, b *bench, size int, check string) {
		t.Helper()
		bound := b.bound(t)
		_, err := bound.Read(nil, b.feed(t, size))
		wantCheck(t, err, check)
		if a := bound.Stop(err); a.Outcome() != verify.Untrusted {
			t.Errorf("%s", a.Outcome())
		}
	}
	t.Run("the event log's size", func(t *testing.T) {
		b := newBench(t)
		b.policy.MaxEventLog = len(b.log) - 1
		refused(t, b, 1000, "eventlog.limit")
	})
	t.Run("the number of rounds", func(t *testing.T) {
		b := newBench(t)
		b.policy.MaxRounds = 10
		refused(t, b, 1, "logs.rounds")
	})
	t.Run("the IMA log's entries", func(t *testing.T) {
		b := newBench(t)
		b.policy.IMAOptions.Limits = ima.Limits{Entry: 4096, Entries: 2, Total: 1 << 20}
		refused(t, b, 1<<10, "ima.limit")
	})
}

func TestThreat11_AnEmptyIMALogIsNotACleanOne(t *testing.T) {
	b := newBench(t)
	b.values[10] = make([]byte, 32) // IMA is off: PCR 10 was never extended
	b.list = nil
	wantCheck(t, b.appraise(t, 1000).Err, "ima.empty")
}

// TestAListThatNoPCRFollowedIsSaidToBeOne: IMA that starts before the TPM's driver writes a list
// and extends nothing.
func TestAListThatNoPCRFollowedIsSaidToBeOne(t *testing.T) {
	b := newBench(t)
	b.values[10] = make([]byte, 32)
	err := b.appraise(t, 1000).Err
	wantCheck(t, err, "ima.empty")
	if !strings.Contains(err.Error(), "PCR 10 was never extended although the list has") || !strings.Contains(err.Error(), "TPM-bypass") {
		t.Errorf("reason: %v", err)
	}
}

// withoutIMA is the bench's reference set without its ima section.
func withoutIMA(t testing.TB, sets reference.Sets) reference.Sets {
	t.Helper()
	text, _, found := bytes.Cut(sets[0].Marshal(), []byte("\nima:\n"))
	if !found {
		t.Fatal("the set has no ima section")
	}
	return must(reference.NewSets(must(reference.ParseSet(append(text, '\n')))(t)))(t)
}

func TestThreat22_PoliciesThatWouldLetAnybodyInAreRefused(t *testing.T) {
	sets := newBench(t).policy.References
	cases := map[string]struct {
		change func(*verify.Policy)
		want   string
	}{
		"nothing to quote":                       {func(p *verify.Policy) { p.Selections = nil }, "no PCRs to quote"},
		"a bank twice":                           {func(p *verify.Policy) { p.Selections = append(p.Selections, p.Selections[0]) }, "selected twice"},
		"no reference set":                       {func(p *verify.Policy) { p.References = nil }, "no reference sets"},
		"a tag that nobody signs":                {func(p *verify.Policy) { p.Tag.Required = true }, "nobody may sign"},
		"an IMA log that no set judges":          {func(p *verify.Policy) { p.References = withoutIMA(t, sets) }, "no ima section to judge it by"},
		"a set that judges what nobody asks for": {func(p *verify.Policy) { p.IMA = false }, "the IMA log is not demanded"},
		"an IMA log without PCR 10": {func(p *verify.Policy) {
			p.Selections = []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0, 4, 7}}}
		}, "PCR 10, which proves it, is not quoted"},
		"padded SHA-1 without the bank of boot_aggregate": {func(p *verify.Policy) { p.IMAOptions.PaddedSHA1 = true }, "PCRs 0 to 7 of bank sha1: quote these too"},
		"padded SHA-1 without an IMA log": {func(p *verify.Policy) {
			p.IMA, p.IMAOptions.PaddedSHA1 = false, true
		}, "zero-padded SHA-1 are told to be read, but the IMA log is not demanded"},
		"a PCR that is not there": {func(p *verify.Policy) {
			p.Selections = []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{99}}}
		}, "99"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p := newBench(t).policy
			tc.change(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// TestARefusalOfANodeWithoutACertificateSaysWhyItHasNone: the node's words are for a person, and
// decide nothing.
func TestARefusalOfANodeWithoutACertificateSaysWhyItHasNone(t *testing.T) {
	b := newBench(t)
	key, err := ek.CertificateKey(b.payload.EKCertificates[0])
	if err != nil {
		t.Fatal(err)
	}
	l := ek.Templates()[slices.IndexFunc(ek.Templates(), func(l ek.Template) bool { return l.Fits(key) })]
	b.payload.EKCertificates, b.payload.EKPublic = nil, tpmtest.Sized(l.WithKey(key))
	b.payload.EKNotes = []string{"NV index 0x01c0000a holds a certificate that cannot be read: x509: malformed \x1b[2J", "NV index 0x01c00002 cannot be read"}
	_, err = verify.Begin(&b.payload, &b.policy, nil, now, rand.Reader)
	wantCheck(t, err, "ek.certificate")
	if !strings.Contains(err.Error(), `the node says: NV index 0x01c0000a holds a certificate that cannot be read: x509: malformed \x1b[2J; NV index 0x01c00002`) {
		t.Errorf("reason: %v", err)
	}
	b = newBench(t)
	b.payload.EKNotes = []string{"none is needed"}
	if _, err := verify.Begin(&b.payload, &b.policy, nil, now, rand.Reader); err != nil {
		t.Error(err)
	}
}
