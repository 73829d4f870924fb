package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/nodeattestor/verify"
	"github.com/keelson-project/keelson/test/vectors"
)

// newSystemdBench is a node whose systemd measured after boot, into PCRs that IMA's boot_aggregate is over too.
func newSystemdBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	words := vectors.NewLog(nodeclaim.SHA256)
	extend := func(pcr int, event, word string) {
		i := slices.Index(selection.PCRs, pcr)
		digest := sha256.Sum256([]byte(word))
		v := sha256.Sum256(slices.Concat(b.values[i], digest[:]))
		b.values[i] = v[:]
		b.user = words.Userspace(b.user, pcr, event, []byte(word), word)
	}
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14} {
		extend(pcr, "os-separator", "os-separator")
	}
	extend(11, "phase", "enter-initrd")
	extend(12, "imds-userdata", "a word of its own")
	b.payload.HasUserspaceLog = true
	return b
}

// withReferences makes a policy that accepts the node with its user space's log.
func (b *bench) withReferences(t *testing.T) {
	t.Helper()
	plain := newBench(t)
	text := plain.policy.References[0].Marshal()
	for i := range selection.PCRs {
		key := `"` + strconv.Itoa(selection.PCRs[i]) + `": `
		from, to := hex.EncodeToString(plain.values[i]), hex.EncodeToString(b.values[i])
		for _, mark := range []string{"", `"`} { // text of digits only is quoted
			text = bytes.ReplaceAll(text, []byte(key+mark+from+mark+"\n"), []byte(key+`"`+to+`"`+"\n"))
		}
	}
	b.policy.References = must(reference.NewSets(must(reference.ParseSet(text))(t)))(t)
}

func TestANodeWithSystemdsLogIsAppraised(t *testing.T) {
	for _, size := range []int{evidence.MaxChunkRaw, 500} {
		b := newSystemdBench(t)
		b.withReferences(t)
		a := b.appraise(t, size)
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		if c := a.Claims; c.Reference != "good" || c.IMA != nodeclaim.IMAClean {
			t.Errorf("claims %+v", c)
		}
	}
}

func TestANodeWithSystemdsLogResumes(t *testing.T) {
	b := newSystemdBench(t)
	b.withReferences(t)
	k := &kept{}
	for i := range 3 {
		a, _ := b.attest(t, k)
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		if a.Resumed != (i > 0) {
			t.Errorf("attestation %d resumed: %v", i, a.Resumed)
		}
	}
}

func TestUserspacesLogIsRefused(t *testing.T) {
	appraise := func(b *bench) error {
		b.withReferences(t)
		complete, err := b.read(t, evidence.MaxChunkRaw)
		if err != nil {
			return err
		}
		return complete.Finish(now).Err
	}
	for name, c := range map[string]struct {
		spoil func(*bench)
		check string
	}{
		"where it is malformed":     {func(b *bench) { b.user = []byte("text") }, "eventlog.userspace"},
		"where it is too large":     {func(b *bench) { b.user = make([]byte, eventlog.MaxUserspaceLog+1) }, "eventlog.userspace"},
		"where a record is missing": {func(b *bench) { b.user = b.user[:bytes.LastIndexByte(b.user, 0x1E)] }, "eventlog.pcr"},
		"where it is empty":         {func(b *bench) { b.user = nil }, "eventlog.pcr"},
	} {
		b := newSystemdBench(t)
		c.spoil(b)
		err := appraise(b)
		r := nodeclaim.AsRefusals(err)
		if !slices.ContainsFunc(r, func(r nodeclaim.Refusal) bool { return r.Check == c.check || r.Check == "ima.aggregate" }) {
			t.Errorf("%s: %v, want %s", name, err, c.check)
		}
	}
}

func TestALogThatWasNotAnnouncedIsNotTaken(t *testing.T) {
	b := newBench(t)
	sent := []evidence.Chunk{*chunk(t, evidence.UserspaceLog, 0, []byte("x"), true)}
	if _, err := b.bound(t).Read(sent, b.feed(t, 1000)); !errors.As(err, new(verify.Malformed)) {
		t.Errorf("taken: %v", err)
	}
}
