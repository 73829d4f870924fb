package appraise_test

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// withSystemd is the evidence of boot "good" on a machine whose systemd measured after it.
func withSystemd(t *testing.T) appraise.Bundle {
	t.Helper()
	b := bundle(t, "good")
	log, err := eventlog.Parse(b.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	values, err := log.Unverified(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	list := ima.Unverified(b.IMALog, nodeclaim.SHA256, ima.Options{})
	values[10] = list[len(list)-1]
	words := vectors.NewLog(nodeclaim.SHA256)
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14} {
		digest := sha256.Sum256([]byte("os-separator"))
		v := sha256.Sum256(slices.Concat(values[pcr], digest[:]))
		values[pcr] = v[:]
		b.Userspace = words.Userspace(b.Userspace, pcr, "os-separator", []byte("os-separator"), "os-separator")
	}
	key, err := tpmtest.NewSoftAK()
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	var pcrs []int
	for i := range 15 {
		all, pcrs = append(all, values[i]...), append(pcrs, i)
	}
	composite := sha256.Sum256(all)
	b.AK, b.Attest = key.Public(), tpm2.Marshal(tpmtest.QuoteAttest([]byte(vectors.Nonce), composite[:], tpmtest.Select(nodeclaim.SHA256, pcrs...)))
	if b.Signature, err = key.Sign(b.Attest); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAFolderWithSystemdsLogIsCapturedAndVerified(t *testing.T) {
	b := withSystemd(t)
	set, err := appraise.Capture("good", b, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := reference.NewSets(set)
	if err != nil {
		t.Fatal(err)
	}
	if _, refusals := verdict(t, b, all); len(refusals) > 0 {
		t.Errorf("refused: %v", refusals)
	}
	for name, spoil := range map[string]func(*appraise.Bundle){
		"without systemd's log": func(b *appraise.Bundle) { b.Userspace = nil },
		"cut":                   func(b *appraise.Bundle) { b.Userspace = b.Userspace[:len(b.Userspace)/2] },
		"malformed":             func(b *appraise.Bundle) { b.Userspace = []byte("text") },
	} {
		bad := b
		spoil(&bad)
		if _, refusals := verdict(t, bad, all); len(refusals) == 0 {
			t.Errorf("accepted %s", name)
		}
	}
}
