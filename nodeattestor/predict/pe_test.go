package predict_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/predict"
)

// part is a section of an image that a test makes.
type part struct {
	name    string
	content []byte
	memory  int // virtual size, len(content) when 0
}

// Offsets of the images that image makes.
const (
	peAt          = 0x80
	optionalAt    = peAt + 24
	optionalSize  = 240
	checksumAt    = optionalAt + 64
	certificateAt = optionalAt + 112 + 4*8
	tableAt       = optionalAt + optionalSize
)

// image makes a PE32+ image with sections of a multiple of 512 bytes in the file.
func image(parts ...part) []byte {
	le := binary.LittleEndian
	headers := (tableAt + 40*len(parts) + 511) &^ 511
	out := make([]byte, headers)
	copy(out, "MZ")
	le.PutUint32(out[0x3C:], peAt)
	copy(out[peAt:], "PE\x00\x00\x64\x86")
	le.PutUint16(out[peAt+6:], uint16(len(parts)))
	le.PutUint16(out[peAt+20:], optionalSize)
	le.PutUint16(out[optionalAt:], 0x20B)
	le.PutUint32(out[optionalAt+60:], uint32(headers))
	le.PutUint32(out[optionalAt+108:], 16)
	for i, p := range parts {
		row := out[tableAt+40*i:]
		copy(row[:8], p.name)
		size := (len(p.content) + 511) &^ 511
		memory := p.memory
		if memory == 0 {
			memory = len(p.content)
		}
		le.PutUint32(row[8:], uint32(memory))
		le.PutUint32(row[16:], uint32(size))
		le.PutUint32(row[20:], uint32(len(out)))
		out = append(out, p.content...)
		out = append(out, make([]byte, size-len(p.content))...)
	}
	return out
}

// signed appends certificates to an image and says so in its headers.
func signed(img []byte, certificates string) []byte {
	out := slices.Clone(img)
	binary.LittleEndian.PutUint32(out[certificateAt:], uint32(len(out)))
	binary.LittleEndian.PutUint32(out[certificateAt+4:], uint32(len(certificates)))
	return append(out, certificates...)
}

func authenticode(t *testing.T, data []byte) []byte {
	t.Helper()
	img, err := predict.ParseImage(data)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := img.Authenticode(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestAuthenticodeIsOfAllButChecksumAndCertificates(t *testing.T) {
	img := image(part{name: ".text", content: []byte("code")}, part{name: ".data", content: []byte("data")})
	img = append(img, "no section has this"...)
	h := sha256.New()
	h.Write(img[:checksumAt])
	h.Write(img[checksumAt+4 : certificateAt])
	h.Write(img[certificateAt+8:])
	want := h.Sum(nil)
	if got := authenticode(t, img); !bytes.Equal(got, want) {
		t.Errorf("unsigned: %x, want %x", got, want)
	}
	if got := authenticode(t, signed(img, "certificates!!!!")); !bytes.Equal(got, want) {
		t.Errorf("signed: %x, want %x", got, want)
	}
}

func TestEveryByteOfAnImageCounts(t *testing.T) {
	img := signed(image(part{name: ".text", content: []byte("code")}, part{name: ".data",
		content: bytes.Repeat([]byte("data"), 200)}), "certificates!!!!")
	want := authenticode(t, img)
	end := len(img) - len("certificates!!!!")
	for i := range img {
		changed := slices.Clone(img)
		changed[i] ^= 1
		parsed, err := predict.ParseImage(changed)
		if err != nil {
			continue
		}
		got, err := parsed.Authenticode(nodeclaim.SHA256)
		free := i >= checksumAt && i < checksumAt+4 || i >= certificateAt && i < certificateAt+4 || i >= end
		if err == nil && bytes.Equal(got, want) != free {
			t.Errorf("byte %#x: same digest %v, want %v", i, bytes.Equal(got, want), free)
		}
	}
}

func TestImagesThatFirmwareWouldNotStart(t *testing.T) {
	good := image(part{name: ".text", content: []byte("code")})
	put := func(at int, v uint32) []byte {
		out := slices.Clone(good)
		binary.LittleEndian.PutUint32(out[at:], v)
		return out
	}
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":                         {nil, "does not begin with MZ"},
		"ELF":                           {append([]byte("\x7fELF"), make([]byte, 100)...), "does not begin with MZ"},
		"header outside":                {put(0x3C, 1<<30), "no PE header"},
		"no PE":                         {put(peAt, 0), "no PE header"},
		"other optional header":         {put(optionalAt, 0x107), "unknown kind 0x107"},
		"cut in a section":              {good[:len(good)-1], "it was cut"},
		"headers beyond the file":       {put(optionalAt+60, 1<<20), "says that its headers have"},
		"headers before their end":      {put(optionalAt+60, 64), "says that its headers have"},
		"section of 2 GB in memory":     {put(tableAt+8, 1<<31), "more than the"},
		"too many sections":             {put(peAt+4, 0xFFFF8664), "more than the 4096"},
		"optional header without table": {put(peAt+20, 8), "outside of its"},
		"optional header cut":           {put(peAt+20, 100), "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := predict.ParseImage(c.data); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
	img, err := predict.ParseImage(put(certificateAt+4, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Authenticode(nodeclaim.SHA256); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("certificates beyond the file: %v", err)
	}
}

func FuzzImage(f *testing.F) {
	f.Add(image(part{name: ".text", content: []byte("code")}))
	f.Add(signed(image(part{name: ".linux", content: []byte("kernel")}, part{name: ".sdmagic",
		content: []byte("#### LoaderInfo: systemd-stub 252 ####")}), "certificate"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		img, err := predict.ParseImage(data)
		if err != nil {
			return
		}
		_, _ = img.Authenticode(nodeclaim.SHA256)
		_, _, _ = img.Systemd()
	})
}
