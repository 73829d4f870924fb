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

// attest runs one attestation with a server that keeps k, as the two plugins do: the node sends the
// first chunk of its IMA log from the challenge's offset on without being asked.
func (b *bench) attest(t testing.TB, k *kept) (verify.Appraisal, sent) {
	t.Helper()
	c, r := b.beginAgain(t, k.earlier)
	bound := must(b.named(t, c, r).Bind(verify.Known{}))(t)
	var s sent
	feed := b.feed(t, evidence.MaxChunkRaw)
	ask := func(next *evidence.Continue) (*evidence.Chunk, error) {
		chunk, err := feed(next)
		if next.Log == evidence.IMALog {
			s.offsets = append(s.offsets, int(next.Offset))
			s.sizes = append(s.sizes, max(0, min(len(b.list)-int(next.Offset), evidence.MaxChunkRaw)))
		}
		return chunk, err
	}
	first := must(ask(&evidence.Continue{Log: evidence.IMALog, Offset: c.Message().IMAOffset}))(t)
	complete, err := bound.Read([]evidence.Chunk{*first}, ask)
	if err != nil {
		return bound.Stop(err), s
	}
	a := complete.Finish(now)
	if a.Outcome() == verify.Trusted {
		k.state, k.ok = a.State, true
	}
	return a, s
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
	a, s := b.attest(t, k)
	if a.Err != nil || !k.ok || a.Resumed || !slices.Equal(s.offsets, []int{0}) {
		t.Fatalf("first attestation: %v, kept %v, resumed %v, sent %v", a.Err, k.ok, a.Resumed, s)
	}
	return b, k
}

func TestAttestingAgainSendsOnlyWhatIsNew(t *testing.T) {
	b, k := accepted(t)
	whole := len(b.list)
	for range 3 {
		a, s := b.attest(t, k)
		if a.Err != nil || !a.Resumed || !slices.Equal(s.offsets, []int{whole}) || s.sizes[0] != 0 {
			t.Fatalf("nothing new: %v, resumed %v, sent %v", a.Err, a.Resumed, s)
		}
	}
	b.measure(b.again())
	a, s := b.attest(t, k)
	if a.Err != nil || !a.Resumed || !slices.Equal(s.offsets, []int{whole}) || s.sizes[0] != 102 {
		t.Fatalf("one entry more: %v, resumed %v, sent %v", a.Err, a.Resumed, s)
	}
	if a, s = b.attest(t, k); a.Err != nil || !slices.Equal(s.offsets, []int{whole + 102}) {
		t.Errorf("the state did not move on: %v, sent %v", a.Err, s)
	}
}

func TestThreat11_AStateThatDoesNotFitMeansTheWholeList(t *testing.T) {
	whole := func(name string, b *bench, k *kept, want []int) {
		t.Helper()
		a, s := b.attest(t, k)
		if a.Err != nil || a.Resumed || !slices.Equal(s.offsets, want) {
			t.Errorf("%s: %v, resumed %v, sent %v, want %v", name, a.Err, a.Resumed, s, want)
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
	if a, _ := b.attest(t, k); a.Err != nil {
		t.Fatal(a.Err)
	}
	long := len(b.list)
	b.list, b.values = short, values
	b.reboots++
	a, s := b.attest(t, k)
	if a.Err != nil || a.Resumed || !slices.Equal(s.offsets, []int{long, 0}) {
		t.Errorf("%v, resumed %v, sent %v", a.Err, a.Resumed, s)
	}
}

func TestThreat11_AListShorterThanBeforeInOneBootIsRefused(t *testing.T) {
	b, k := accepted(t)
	b.list = b.list[:len(b.list)-102]
	a, _ := b.attest(t, k)
	wantCheck(t, a.Err, "ima.shorter")

	b, k = accepted(t)
	before := b.list
	b.measure(b.again())
	b.list = before // the new entry is dropped
	a, _ = b.attest(t, k)
	wantCheck(t, a.Err, "ima.pcr")
}

func TestThreat11_ANewFileIsJudgedAfterAResume(t *testing.T) {
	b, k := accepted(t)
	b.measure(tpmtest.IMAEntry("/tmp/evil", []byte("evil")))
	a, _ := b.attest(t, k)
	wantCheck(t, a.Err, "ima.file")
	if !a.Resumed {
		t.Error("not resumed")
	}
	if a.State.Size() >= k.state.Size() {
		t.Error("a refused appraisal leaves more than its boot")
	}
}

func TestThreat22_AStateOfAnotherPolicyIsNone(t *testing.T) {
	b, k := accepted(t)
	other := *b
	if a, s := other.attest(t, k); a.Err != nil || a.Resumed || !slices.Equal(s.offsets, []int{0}) {
		t.Errorf("%v, resumed %v, sent %v", a.Err, a.Resumed, s)
	}
	if k.state.Size() > 1000 {
		t.Errorf("a state takes %d bytes", k.state.Size())
	}
}
