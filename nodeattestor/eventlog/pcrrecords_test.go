package eventlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Whoever mounts a disk image or logs in has a record added to systemd's log. No number of them makes a log
// that cannot be replayed.
func TestRecordsThatUsersAddDoNotMakeTheLogTooLong(t *testing.T) {
	l := booted(nodeclaim.SHA256).Unquote(10)
	user := started(l)
	var long []byte
	nv := fmt.Sprintf("\x1e{\"nv_index\":30474752,\"digests\":[{\"hashAlg\":\"sha256\",\"digest\":\"%064x\"}],\"content\":{\"string\":\"verity:x:%s\"}}\n",
		1, strings.Repeat("0", 900))
	for record := range bytes.SplitSeq(user, []byte{0x1e}) {
		if len(record) > 0 {
			long = append(append(long, strings.Repeat(nv, 700)...), append([]byte{0x1e}, record...)...)
		}
	}
	long = append(long, "\x1e{\"rtmr\":1}\n"...)
	if _, err := eventlog.ReplayBoth(l.Raw(), long, l.Quoted(t)); err == nil {
		t.Fatal("the whole log is not too long")
	}
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(long), "byte by byte": iotest.OneByteReader(bytes.NewReader(long))} {
		kept, err := eventlog.PCRRecords(r)
		if err != nil {
			t.Fatal(err)
		}
		if want := withoutNV(user); !bytes.Equal(kept, want) {
			t.Errorf("%s: kept %d bytes, want %d", name, len(kept), len(want))
		}
		if boot := both(t, l, kept); len(boot.Phases(nodeclaim.SHA256)) != 4 {
			t.Errorf("phases %v", boot.Phases(nodeclaim.SHA256))
		}
	}
}

func withoutNV(log []byte) (out []byte) {
	for record := range bytes.SplitSeq(log, []byte{0x1e}) {
		if len(record) > 0 && !bytes.Contains(record, []byte(`"nv_index"`)) {
			out = append(append(out, 0x1e), record...)
		}
	}
	return out
}

// What is not surely a record of another register stays, for the replay to judge.
func TestAllElseOfTheLogStays(t *testing.T) {
	for _, log := range []string{
		"", "text", "\x1e", "\x1e\x1e\n", "\x1e{}\n", "\x1enonsense\n", "\x1e{\"pcr\":11,\"nv_index\":1}\n", "\x1e{\"nv_index\":1}", "\x1e{\"nv_index\":1} {}\n",
		"\x1e{\"pcr\":1}\n\x1e{\"nv_index\":", "{\"nv_index\":1}\n\x1e{\"pcr\":7}\n",
	} {
		if kept, err := eventlog.PCRRecords(strings.NewReader(log)); err != nil || string(kept) != log {
			t.Errorf("%q became %q, %v", log, kept, err)
		}
	}
}

func TestLogsThatAreTooLongAreNotRead(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		r    io.Reader
		want string
	}{
		"a record":    {strings.NewReader("\x1e" + strings.Repeat("x", 1<<20)), "a record of more than the 1048576"},
		"PCRs' part":  {strings.NewReader(strings.Repeat("\x1e{\"pcr\":1,\"x\":\""+strings.Repeat("x", 1000)+"\"}\n", 1100)), "more than the 1048576 bytes of PCRs"},
		"all of it":   {&endless{}, "more than the 67108864 bytes"},
		"read errors": {io.MultiReader(strings.NewReader("\x1e{}\n"), iotest.ErrReader(broken)), "broken"},
	} {
		if _, err := eventlog.PCRRecords(c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// endless is a log of one record over and over.
type endless struct{ at int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = longRecord[e.at%len(longRecord)]
		e.at++
	}
	return len(p), nil
}

var longRecord = "\x1e{\"nv_index\":1,\"x\":\"" + strings.Repeat("x", 10_000) + "\"}\n"
