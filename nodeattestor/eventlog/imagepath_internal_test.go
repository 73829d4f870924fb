package eventlog

import (
	"strings"
	"testing"
)

func FuzzImagePath(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(make([]byte, 24), 16, 0, 0, 0, 0, 0, 0, 0, 4, 4, 8, 0, 'a', 0, 0, 0, 0x7F, 0xFF, 4, 0))
	f.Add(append(make([]byte, 24), 4, 0, 0, 0, 0, 0, 0, 0, 4, 6, 4, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := parseImagePath(data)
		if len(p.file) > 3*len(data) || p.file != "" && !strings.HasPrefix(p.file, `\`) {
			t.Errorf("%q is read of %d bytes", p.file, len(data))
		}
		if p.shim() && !p.loader() {
			t.Errorf("%q is shim and no loader", p.file)
		}
	})
}
