package verify_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// kept is a server's memory of one EK.
type kept struct {
	state verify.State
	ok    bool
}

func (k *kept) earlier(nodeclaim.EKHash) (verify.State, bool) { return k.state, k.ok }

// sent is what a node sent of its IMA log, by offset.
type sent struct{ offsets, sizes []int }

// attest runs one attestation with a server that keeps k, as the two plugins do.
func (b *bench) attest(t testing.TB, k *kept) (*verify.Pending, sent, error) {
	t.Helper()
	source := &seen{}
	p, c, err := verify.BeginAgain(&b.payload, &b.policy, k.earlier, now, source)
	if err != nil {
		t.Fatal(err)
	}
	r := &evidence.Response{Secret: source.drawn[:evidence.SecretSize], Quotes: []evidence.Quote{b.quote(t, c.Nonce)}}
	if err := p.Prove(r, now); err != nil {
		t.Fatal(err)
	}
	if err := p.Bind(verify.Known{}); err != nil {
		t.Fatal(err)
	}
	var s sent
	next := &evidence.Continue{Log: evidence.IMALog, Offset: c.IMAOffset}
	for next != nil {
		log := b.log
		if next.Log == evidence.UserspaceLog {
			log = b.user
		}
		if next.Log == evidence.IMALog {
			log = b.list
			s.offsets = append(s.offsets, int(next.Offset))
		}
		from := min(int(next.Offset), len(log))
		end := min(from+evidence.MaxChunkRaw, len(log))
		if next.Log == evidence.IMALog {
			s.sizes = append(s.sizes, end-from)
		}
		if err := p.Add(chunk(t, next.Log, uint64(from), log[from:end], end == len(log))); err != nil {
			return p, s, err
		}
		if next, err = p.Next(); err != nil {
			return p, s, err
		}
	}
	if _, err = p.Finish(now); err == nil {
		k.state, k.ok = p.State()
	}
	return p, s, err
}

// measure lets a file of the reference set run once more.
func (b *bench) measure(entry []byte) {
	b.list = append(b.list, entry...)
	all := ima.Unverified(b.list, nodeclaim.SHA256, ima.Options{})
	b.values = slices.Clone(b.values)
	b.values[slices.Index(selection.PCRs, 10)] = all[len(all)-1]
}

// again is the list's last entry, a file that the reference set has.
func (b *bench) again() []byte { return bytes.Clone(b.list[len(b.list)-102:]) }

// accepted is a bench that was accepted once, with what the server kept.
func accepted(t testing.TB) (*bench, *kept) {
	t.Helper()
	b, k := newBench(t), &kept{}
	p, s, err := b.attest(t, k)
	if err != nil || !k.ok || p.Resumed() || !slices.Equal(s.offsets, []int{0}) {
		t.Fatalf("first attestation: %v, kept %v, resumed %v, sent %v", err, k.ok, p.Resumed(), s)
	}
	return b, k
}

func TestAttestingAgainSendsOnlyWhatIsNew(t *testing.T) {
	b, k := accepted(t)
	whole := len(b.list)
	for range 3 {
		p, s, err := b.attest(t, k)
		if err != nil || !p.Resumed() || !slices.Equal(s.offsets, []int{whole}) || s.sizes[0] != 0 {
			t.Fatalf("nothing new: %v, resumed %v, sent %v", err, p.Resumed(), s)
		}
	}
	b.measure(b.again())
	p, s, err := b.attest(t, k)
	if err != nil || !p.Resumed() || !slices.Equal(s.offsets, []int{whole}) || s.sizes[0] != 102 {
		t.Fatalf("one entry more: %v, resumed %v, sent %v", err, p.Resumed(), s)
	}
	if _, s, err = b.attest(t, k); err != nil || !slices.Equal(s.offsets, []int{whole + 102}) {
		t.Errorf("the state did not move on: %v, sent %v", err, s)
	}
}

func TestThreat11_AStateThatDoesNotFitMeansTheWholeList(t *testing.T) {
	whole := func(name string, b *bench, k *kept, want []int) {
		t.Helper()
		p, s, err := b.attest(t, k)
		if err != nil || p.Resumed() || !slices.Equal(s.offsets, want) {
			t.Errorf("%s: %v, resumed %v, sent %v, want %v", name, err, p.Resumed(), s, want)
		}
	}
	b, k := accepted(t)
	b.reboots++
	whole("after a reboot", b, k, []int{len(b.list), 0})

	b, k = accepted(t)
	k.ok = false
	whole("another server", b, k, []int{0})

	b, k = accepted(t)
	b.ak = must(tpmtest.NewSoftAK())(t)
	b.payload.AKPublic = b.ak.Public()
	whole("another AK", b, k, []int{0})

	b, k = accepted(t)
	b.policy.References = b.references(t)
	whole("other reference sets in the same policy", b, k, []int{len(b.list), 0})
}

func TestAfterARebootAShorterListIsNoTampering(t *testing.T) {
	b, k := accepted(t)
	short, values := b.list, b.values
	b.measure(b.again())
	if _, _, err := b.attest(t, k); err != nil {
		t.Fatal(err)
	}
	long := len(b.list)
	b.list, b.values = short, values
	b.reboots++
	p, s, err := b.attest(t, k)
	if err != nil || p.Resumed() || !slices.Equal(s.offsets, []int{long, 0}) {
		t.Errorf("%v, resumed %v, sent %v", err, p.Resumed(), s)
	}
}

func TestThreat11_AListShorterThanBeforeInOneBootIsRefused(t *testing.T) {
	b, k := accepted(t)
	b.list = b.list[:len(b.list)-102]
	_, _, err := b.attest(t, k)
	wantCheck(t, err, "ima.shorter")

	b, k = accepted(t)
	before := b.list
	b.measure(b.again())
	b.list = before // the new entry is dropped
	_, _, err = b.attest(t, k)
	wantCheck(t, err, "ima.pcr")
}

func TestThreat11_ANewFileIsJudgedAfterAResume(t *testing.T) {
	b, k := accepted(t)
	b.measure(tpmtest.IMAEntry("/tmp/evil", []byte("evil")))
	p, _, err := b.attest(t, k)
	wantCheck(t, err, "ima.file")
	if !p.Resumed() {
		t.Error("not resumed")
	}
	if _, ok := p.State(); ok {
		t.Error("a refused appraisal leaves a state")
	}
}

func TestThreat22_AStateOfAnotherPolicyIsNone(t *testing.T) {
	b, k := accepted(t)
	other := *b
	if p, s, err := other.attest(t, k); err != nil || p.Resumed() || !slices.Equal(s.offsets, []int{0}) {
		t.Errorf("%v, resumed %v, sent %v", err, p.Resumed(), s)
	}
	if k.state.Size() > 1000 {
		t.Errorf("a state takes %d bytes", k.state.Size())
	}
}
