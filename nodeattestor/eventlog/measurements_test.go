package eventlog_test

import (
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// The events of a log lead to its PCRs, and a caller that writes into them does not write into the
// log.
func TestMeasurementsAreTheExtendedEvents(t *testing.T) {
	log, err := eventlog.Parse(vectors.Read(t, "good", vectors.EventLog))
	if err != nil {
		t.Fatal(err)
	}
	all, err := log.Measurements(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	claimed, err := log.Claimed(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(claimed.Events) {
		t.Fatalf("%d measurements, %d events", len(all), len(claimed.Events))
	}
	for i, m := range all {
		if e := claimed.Events[i]; e.PCR != m.PCR || e.Digest != eventlog.NewDigest(nodeclaim.SHA256, m.Digest) {
			t.Errorf("measurement %d is of PCR %d, the event of %d", i, m.PCR, e.PCR)
		}
		clear(m.Digest)
		clear(m.Data)
	}
	again, err := log.Claimed(nodeclaim.SHA256)
	if err != nil || again.Events[0] != claimed.Events[0] {
		t.Errorf("the log changed: %v", err)
	}
	if _, err := log.Measurements(nodeclaim.SHA512); err == nil {
		t.Error("a bank that the log lacks: no error")
	}
}

func TestTextOfAMeasurementIsWhatItsDigestConfirms(t *testing.T) {
	for data, want := range map[string][3]string{
		"grub_cmd: linux /vmlinuz a: b\x00": {"grub_cmd: ", "linux /vmlinuz a: b", "\x00"},
		"grub_cmd linux /vmlinuz\x00":       {"grub_cmd ", "linux /vmlinuz\x00", ""}, // RHEL 8
		"plain text":                        {"", "plain text", ""},
		"with NUL\x00":                      {"", "with NUL", "\x00"},
	} {
		raw := vectors.NewLog(nodeclaim.SHA256).Event(8, vectors.IPL, []byte(want[1]), []byte(data)).Raw()
		log, err := eventlog.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		all, err := log.Measurements(nodeclaim.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		before, text, after, ok := all[0].Text(nodeclaim.SHA256)
		if got := [3]string{before, text, after}; !ok || got != want {
			t.Errorf("%q: %q %v, want %q", data, got, ok, want)
		}
		all[0].Digest[0] ^= 1
		if _, _, _, ok := all[0].Text(nodeclaim.SHA256); ok {
			t.Errorf("%q: another digest confirms it", data)
		}
	}
}
