package mesh

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatTheLoaderListsIsRead(t *testing.T) {
	cases := map[string]struct {
		out, err string
		want     []string
	}{
		"libraries, the kernel's own, and the loader": {
			out: "\tlinux-vdso.so.1 (0x00007f0a7cc65000)\n\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f0a75b20000)\n" +
				"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0a7593e000)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f0a7cc67000)\n",
			want: []string{"/lib/x86_64-linux-gnu/libm.so.6", "/lib/x86_64-linux-gnu/libc.so.6"},
		},
		"the loader under another name": {
			out:  "\tlibc.so.6 => /lib64/libc.so.6 (0x0000)\n\t/lib/ld-linux-aarch64.so.1 => /lib64/ld-linux-aarch64.so.1 (0x0000)\n",
			want: []string{"/lib64/libc.so.6"},
		},
		"a library that this machine lacks": {out: "\tlibssl.so.9 => not found\n", err: "libssl.so.9 is missing"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := listed(c.out)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want an error about %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
