package appraise_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func bundle(t testing.TB, name string) appraise.Bundle {
	t.Helper()
	return appraise.Bundle{
		Attest: vectors.Read(t, name, "quote.attest"), Signature: vectors.Read(t, name, "quote.sig"), AK: vectors.Read(t, name, "ak.tpmpub"),
		EventLog: vectors.Read(t, name, vectors.EventLog), IMALog: vectors.Read(t, name, vectors.IMALog), CommandLine: string(vectors.Read(t, name, "cmdline.txt")),
	}
}

func sets(t testing.TB, names ...string) reference.Sets {
	t.Helper()
	var all []reference.Set
	for _, n := range names {
		s, err := appraise.Capture(n, bundle(t, n), ima.Options{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	out, err := reference.NewSets(all...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// verdict is all that a report would have, as text.
func verdict(t testing.TB, b appraise.Bundle, s reference.Sets) (string, nodeclaim.Refusals) {
	t.Helper()
	out, pcrs, refusals := appraise.Offline(b, []byte(vectors.Nonce), s, ima.Options{}, now)
	j, err := json.Marshal([]any{out.Reference, out.Facts(), pcrs.All(), out.SecureBoot.String(), out.IMAState, refusals})
	if err != nil {
		t.Fatal(err)
	}
	return string(j), refusals
}

func TestOfflineAcceptsAndRefusesTheMeasuredBoots(t *testing.T) {
	s := sets(t, "good", "ima-payload-a")
	for name, want := range map[string]string{
		"good": "", "good-repeat": "", "multibank": "", "ima-payload-a": "",
		"cmdline": "kernel.cmdline", "secureboot-on": "secureboot.state", "ima-payload-b": "ima.file",
	} {
		out, pcrs, refusals := appraise.Offline(bundle(t, name), []byte(vectors.Nonce), s, ima.Options{}, now)
		if want == "" {
			if len(refusals) > 0 || out.Reference == "" || out.IMAState != nodeclaim.IMAClean || out.SecureBoot != nodeclaim.False || out.Weak || out.Bank != nodeclaim.SHA256 {
				t.Errorf("%s: %+v, %v", name, out, refusals)
			}
		} else if len(refusals) == 0 || refusals[0].Check != want || out.Reference != "" || out.IMAState != nodeclaim.IMAAbsent {
			t.Errorf("%s: %q, %v, want %s", name, out.Reference, refusals, want)
		}
		if f := out.Facts(); f == nil || f.IMA == nil || len(f.Unreplayed) != 0 {
			t.Errorf("%s: facts %+v", name, f)
		}
		if len(pcrs.Indices(nodeclaim.SHA256)) != 15 {
			t.Errorf("%s: PCRs %v", name, pcrs.Indices(nodeclaim.SHA256))
		}
	}
}

func TestOfflineSaysWhichLogIsWrong(t *testing.T) {
	change := func(f func(*appraise.Bundle)) appraise.Bundle {
		b := bundle(t, "good")
		f(&b)
		return b
	}
	cmdline := bundle(t, "cmdline")
	cases := map[string]struct {
		b           appraise.Bundle
		nonce       string
		check, says string
	}{
		"another nonce":                 {bundle(t, "good"), "another", "quote.nonce", "another nonce"},
		"another key":                   {change(func(b *appraise.Bundle) { b.AK = cmdline.AK }), vectors.Nonce, "quote.signature", ""},
		"no key":                        {change(func(b *appraise.Bundle) { b.AK = nil }), vectors.Nonce, "ak.parse", ""},
		"no quote":                      {change(func(b *appraise.Bundle) { b.Attest = nil }), vectors.Nonce, "quote.magic", ""},
		"an empty event log":            {change(func(b *appraise.Bundle) { b.EventLog = nil }), vectors.Nonce, "eventlog.format", "is empty"},
		"another boot's event log":      {change(func(b *appraise.Bundle) { b.EventLog = cmdline.EventLog }), vectors.Nonce, "eventlog.pcr", "its PCRs 0 to 9 give boot_aggregate"},
		"another boot's logs":           {change(func(b *appraise.Bundle) { b.EventLog, b.IMALog = cmdline.EventLog, cmdline.IMALog }), vectors.Nonce, "ima.pcr", "no number of its 14 entries"},
		"another boot's IMA list":       {change(func(b *appraise.Bundle) { b.IMALog = cmdline.IMALog }), vectors.Nonce, "eventlog.pcr", "different boots"},
		"an IMA list cut between lines": {change(func(b *appraise.Bundle) { b.IMALog = b.IMALog[:len(b.IMALog)-102] }), vectors.Nonce, "ima.pcr", "entries were dropped"},
		"an IMA list cut in a line":     {change(func(b *appraise.Bundle) { b.IMALog = b.IMALog[:len(b.IMALog)-5] }), vectors.Nonce, "ima.format", "was cut"},
		"an IMA list without its start": {change(func(b *appraise.Bundle) { b.IMALog = b.IMALog[106:] }), vectors.Nonce, "ima.trimmed", "beginning of the list is missing"},
		"an IMA entry that was changed": {change(func(b *appraise.Bundle) {
			b.IMALog = bytes.Replace(b.IMALog, []byte("/bin/probe"), []byte("/bin/prove"), 1)
		}), vectors.Nonce, "ima.entry", "entry 13 was changed"},
		"no IMA list": {change(func(b *appraise.Bundle) { b.IMALog = nil }), vectors.Nonce, "quote.composite", "no IMA list"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			out, pcrs, refusals := appraise.Offline(c.b, []byte(c.nonce), sets(t, "good"), ima.Options{}, now)
			if len(refusals) != 1 || refusals[0].Check != c.check || !strings.Contains(refusals[0].Reason, c.says) {
				t.Errorf("got %v, want %s with %q", refusals, c.check, c.says)
			}
			if out.Reference != "" || out.Facts() != nil || len(pcrs.Banks()) != 0 {
				t.Errorf("refused evidence proves something: %+v, %v", out, pcrs)
			}
		})
	}
}

func TestEntriesAfterTheQuoteChangeNothing(t *testing.T) {
	b := bundle(t, "good")
	want, _ := verdict(t, b, sets(t, "good"))
	b.IMALog = append(b.IMALog, bundle(t, "ima-payload-b").IMALog[106:]...)
	if got, _ := verdict(t, b, sets(t, "good")); got != want {
		t.Errorf("a list that grew (-want +got):\n%s", cmp.Diff(want, got))
	}
}

func TestThreat22_NoSetMeansNotTrustedButFactsAreShown(t *testing.T) {
	out, _, refusals := appraise.Offline(bundle(t, "good"), []byte(vectors.Nonce), nil, ima.Options{}, now)
	if len(refusals) != 1 || refusals[0].Check != "reference.none" || out.Reference != "" {
		t.Errorf("%q, %v", out.Reference, refusals)
	}
	if f := out.Facts(); f == nil || f.CommandLine.Text == "" {
		t.Errorf("facts %+v", f)
	}
}

// Every flipped bit of a log and of the quote is refused, or nothing that anybody reads changes.
func TestFlippedBitsOfEvidenceAreRefusedOrChangeNothing(t *testing.T) {
	s := sets(t, "good")
	good := bundle(t, "good")
	want, refusals := verdict(t, good, s)
	if len(refusals) > 0 {
		t.Fatal(refusals)
	}
	parts := map[string]struct {
		data   []byte
		step   int  // packages eventlog and ima try every bit of their logs; here every eleventh is judged to the end
		always bool // every flip must be refused
	}{
		"event log": {good.EventLog, 11, false}, "IMA list": {good.IMALog, 11, false},
		"quote": {good.Attest, 1, true}, "signature": {good.Signature, 1, true},
	}
	for name, p := range parts {
		for bit := 0; bit < len(p.data)*8; bit += p.step {
			p.data[bit/8] ^= 1 << (bit % 8)
			got, refusals := verdict(t, good, s)
			if len(refusals) == 0 && (p.always || got != want) {
				t.Fatalf("%s with bit %d of byte %d flipped was accepted (-want +got):\n%s", name, bit%8, bit/8, cmp.Diff(want, got))
			}
			p.data[bit/8] ^= 1 << (bit % 8)
		}
	}
}

func TestCaptureRefusesEvidenceThatTheQuoteDoesNotCover(t *testing.T) {
	b := bundle(t, "good")
	b.EventLog = bundle(t, "cmdline").EventLog
	if _, err := appraise.Capture("x", b, ima.Options{}); len(nodeclaim.AsRefusals(err)) != 1 {
		t.Errorf("got %v", err)
	}
	b = bundle(t, "good")
	b.Attest = []byte("nonsense")
	if _, err := appraise.Capture("x", b, ima.Options{}); len(nodeclaim.AsRefusals(err)) != 1 {
		t.Errorf("got %v", err)
	}
}

func TestLogsRefusesWithoutPCRs(t *testing.T) {
	out, refusals := appraise.Logs(appraise.Input{EventLog: vectors.Read(t, "good", vectors.EventLog), Sets: sets(t, "good"), Now: now})
	if len(refusals) == 0 || out.Reference != "" || out.Facts() != nil {
		t.Errorf("%+v, %v", out, refusals)
	}
}
