package eventlog_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// For a true log, what it claims is what a quote proves.
func TestWhatATrueLogClaimsIsWhatAQuoteProves(t *testing.T) {
	raw := vectors.Read(t, "good", vectors.EventLog)
	proven, err := eventlog.Replay(raw, vectors.Quoted(t, "good"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := log.Claimed(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	facts, _ := proven.Facts(nodeclaim.SHA256)
	if diff := cmp.Diff(printed(t, facts), printed(t, claimed.Facts)); diff != "" {
		t.Errorf("facts (-proven +claimed):\n%s", diff)
	}
	if diff := cmp.Diff(proven.Events(nodeclaim.SHA256), claimed.Events); diff != "" || len(claimed.Problems) != 0 {
		t.Errorf("events (-proven +claimed):\n%s\nproblems %v", diff, claimed.Problems)
	}
	for _, pcr := range proven.Replayed(nodeclaim.SHA256) {
		quoted, _ := vectors.Quoted(t, "good").Value(nodeclaim.SHA256, pcr)
		if diff := cmp.Diff(quoted, claimed.PCRs[pcr]); diff != "" && pcr != 11 { // systemd extends 11 without the log
			t.Errorf("PCR %d (-quoted +claimed):\n%s", pcr, diff)
		}
	}
	if _, err := log.Claimed(nodeclaim.SHA512); err == nil {
		t.Error("a bank that the log lacks: no error")
	}
}

func printed(t *testing.T, f eventlog.Facts) string {
	t.Helper()
	out, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
