package predict

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// Limits of an image.
const (
	MaxImage    = 1 << 30 // bytes
	maxSections = 4096
)

// Offsets in a PE image (Microsoft, PE Format: MS-DOS stub, COFF file header, optional header).
const (
	peOffsetAt       = 0x3C
	coffSize         = 4 + 20 // with the signature
	sectionCountAt   = 4 + 2
	optionalSizeAt   = 4 + 16
	checksumAt       = 64 // in the optional header
	headersSizeAt    = 60
	magicPE32        = 0x10B
	magicPE32Plus    = 0x20B
	certificateEntry = 4 // of the data directories
	directorySize    = 8
	sectionSize      = 40
)

// Image is a PE image: what UEFI firmware starts.
type Image struct {
	data      []byte
	checksum  int // offset of the checksum
	directory int // offset of the certificate table's directory entry, 0 where there is none
	headers   int // size of all headers
	sections  []section
}

// section is one entry of the section table.
type section struct {
	name          string
	virtualSize   uint32
	size, pointer uint32 // of the raw data in the file
}

// ParseImage reads the headers of a PE image (PE32 and PE32+). Every section must lie in the file.
func ParseImage(data []byte) (Image, error) {
	if len(data) > MaxImage {
		return Image{}, fmt.Errorf("predict: image has %d bytes, more than the %d allowed", len(data), MaxImage)
	}
	if len(data) < peOffsetAt+4 || data[0] != 'M' || data[1] != 'Z' {
		return Image{}, fmt.Errorf("predict: not an EFI image: it does not begin with MZ")
	}
	pe := int64(binary.LittleEndian.Uint32(data[peOffsetAt:]))
	if pe+coffSize+checksumAt+4 > int64(len(data)) || !bytes.Equal(data[pe:pe+4], []byte("PE\x00\x00")) {
		return Image{}, fmt.Errorf("predict: not an EFI image: no PE header at offset %d", pe)
	}
	at := int(pe)
	count := int(binary.LittleEndian.Uint16(data[at+sectionCountAt:]))
	optional := at + coffSize
	table := optional + int(binary.LittleEndian.Uint16(data[at+optionalSizeAt:]))
	img := Image{data: data, checksum: optional + checksumAt,
		headers: int(binary.LittleEndian.Uint32(data[optional+headersSizeAt:]))}
	switch {
	case count > maxSections:
		return Image{}, fmt.Errorf("predict: image has %d sections, more than the %d allowed", count, maxSections)
	case table < optional+checksumAt+4 || table+count*sectionSize > len(data):
		return Image{}, fmt.Errorf("predict: image has its section table at offset %d, outside of its %d bytes",
			table, len(data))
	case img.headers < table+count*sectionSize || img.headers > len(data):
		return Image{}, fmt.Errorf("predict: image says that its headers have %d bytes, but they end at %d of %d",
			img.headers, table+count*sectionSize, len(data))
	}
	if err := img.findDirectory(optional, table); err != nil {
		return Image{}, err
	}
	return img, img.readSections(table, count)
}

// findDirectory finds the entry of the certificate table, which is not hashed.
func (img *Image) findDirectory(optional, table int) error {
	var countAt int
	switch magic := binary.LittleEndian.Uint16(img.data[optional:]); magic {
	case magicPE32:
		countAt = optional + 92
	case magicPE32Plus:
		countAt = optional + 108
	default:
		return fmt.Errorf("predict: image has an optional header of unknown kind %#x", magic)
	}
	if countAt+4 > table {
		return fmt.Errorf("predict: image has an optional header of %d bytes, which is too short", table-optional)
	}
	if binary.LittleEndian.Uint32(img.data[countAt:]) <= certificateEntry {
		return nil
	}
	img.directory = countAt + 4 + certificateEntry*directorySize
	if img.directory+directorySize > table {
		return fmt.Errorf("predict: image has data directories that its optional header has no room for")
	}
	return nil
}

func (img *Image) readSections(table, count int) error {
	for i := range count {
		b := img.data[table+i*sectionSize:]
		s := section{
			name:        string(bytes.TrimRight(b[:8], "\x00")),
			virtualSize: binary.LittleEndian.Uint32(b[8:]),
			size:        binary.LittleEndian.Uint32(b[16:]), pointer: binary.LittleEndian.Uint32(b[20:]),
		}
		if s.size == 0 {
			s.pointer = 0 // it has nothing in the file, and may say that it lies beyond its end
		}
		if int64(s.pointer)+int64(s.size) > int64(len(img.data)) {
			return fmt.Errorf("predict: image has section %.8q at %d with %d bytes, outside of its %d bytes: it was cut", s.name, s.pointer, s.size, len(img.data))
		}
		if s.virtualSize > MaxImage {
			return fmt.Errorf("predict: image has section %.8q of %d bytes in memory, more than the %d allowed",
				s.name, s.virtualSize, MaxImage)
		}
		img.sections = append(img.sections, s)
	}
	return nil
}

// Authenticode is the digest that firmware measures into PCR 4 (TCG PFP 1.06, 3.3.4.5; Microsoft,
// Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash"): all
// of the file but the checksum, the certificate table's directory entry and the certificates, with
// the sections in the order in which they lie in the file. As EDK II does, and signing tools do
// not, it adds no zeros to a length that is no multiple of 8.
func (img Image) Authenticode(alg nodeclaim.HashAlg) ([]byte, error) {
	h := alg.New()
	h.Write(img.data[:img.checksum])
	certificates := 0
	if img.directory == 0 {
		h.Write(img.data[img.checksum+4 : img.headers])
	} else {
		h.Write(img.data[img.checksum+4 : img.directory])
		h.Write(img.data[img.directory+directorySize : img.headers])
		certificates = int(binary.LittleEndian.Uint32(img.data[img.directory+4:]))
	}
	hashed := int64(img.headers)
	inOrder := slices.DeleteFunc(slices.Clone(img.sections), func(s section) bool { return s.size == 0 })
	slices.SortStableFunc(inOrder, func(a, b section) int { return int(int64(a.pointer) - int64(b.pointer)) })
	for _, s := range inOrder {
		h.Write(img.data[s.pointer : int64(s.pointer)+int64(s.size)])
		hashed += int64(s.size)
	}
	rest := int64(len(img.data)) - int64(certificates) - hashed
	if rest < 0 {
		return nil, fmt.Errorf("predict: image has sections and %d bytes of certificates that overlap or are not all there: firmware starts no such image", certificates)
	}
	h.Write(img.data[hashed : hashed+rest])
	return h.Sum(nil), nil
}

// content is a section as it is in memory: its virtual size, filled up with zeros.
func (img Image) content(s section) []byte {
	if s.virtualSize <= s.size {
		return img.data[s.pointer : s.pointer+s.virtualSize]
	}
	out := make([]byte, s.virtualSize)
	copy(out, img.data[s.pointer:s.pointer+s.size])
	return out
}

// magicText is how systemd's EFI programs say what they are, in section .sdmagic.
var magicText = regexp.MustCompile(`^#### LoaderInfo: (systemd-boot|systemd-stub) (([0-9]+)[^ ]*) ####`)

// Systemd is what program of systemd's an image says that it is, "systemd-boot" or "systemd-stub",
// and its version; "" for others.
func (img Image) Systemd() (program, version string, number int) {
	for _, s := range img.sections {
		if s.name != ".sdmagic" || s.virtualSize > 4096 {
			continue
		}
		if m := magicText.FindSubmatch(img.content(s)); m != nil {
			number, err := strconv.Atoi(string(m[3]))
			if err == nil {
				return string(m[1]), string(m[2]), number
			}
		}
	}
	return "", "", 0
}

// bootMagic and versionAt are of x86 Linux's boot protocol (Linux Documentation/arch/x86/boot.rst,
// "The Real-Mode Kernel Header").
const (
	bootMagicAt = 0x202
	versionAt   = 0x20E
)

var release = regexp.MustCompile(`^([0-9]{1,4})\.([0-9]{1,4})[.\- ]`)

// kernelVersion reads major and minor version of an x86 kernel; ok is false where the image does
// not say.
func kernelVersion(image []byte) (major, minor int, ok bool) {
	if len(image) < versionAt+2 || !bytes.Equal(image[bootMagicAt:bootMagicAt+4], []byte("HdrS")) {
		return 0, 0, false
	}
	at := int(binary.LittleEndian.Uint16(image[versionAt:])) + 0x200
	if at+64 > len(image) {
		return 0, 0, false
	}
	m := release.FindSubmatch(image[at : at+64])
	if m == nil {
		return 0, 0, false
	}
	major, err := strconv.Atoi(string(m[1]))
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(string(m[2]))
	return major, minor, err == nil
}
