package eventlog

import (
	"encoding/binary"
	"regexp"
	"strings"
)

// imagePath is where an image was loaded from, by the log's word: no digest covers it. So it may keep a fact from
// being claimed, and never makes one.
type imagePath struct {
	file     string // path in a file system, "" without one
	firmware bool   // it lies in the firmware's own flash
}

// Types and sub-types of device path nodes (UEFI 2.11, 10.3).
const (
	nodeMedia          = 4
	nodeFilePath       = 4
	nodeFirmwareFile   = 6 // PIWG firmware file, in
	nodeFirmwareVolume = 7 // a PIWG firmware volume; both hold a GUID
	nodeEnd            = 0x7F
	guidNode           = 4 + 16 // bytes
)

// imageLoadHeader is the size of UEFI_IMAGE_LOAD_EVENT before its device path: address, length, link-time address and
// length of the path, 8 bytes each (TCG PFP 1.06, 10.2.3).
const imageLoadHeader = 32

// parseImagePath reads the device path of a UEFI_IMAGE_LOAD_EVENT. It stops at what it cannot read: nothing is proven by
// it. 32-bit firmware writes shorter headers, of which nothing is read.
func parseImagePath(data []byte) imagePath {
	var p imagePath
	if len(data) < imageLoadHeader {
		return p
	}
	size := binary.LittleEndian.Uint64(data[24:])
	path := data[imageLoadHeader:]
	if size > uint64(len(path)) {
		return p
	}
	path = path[:size]
	inVolume := false
	for len(path) >= 4 && path[0] != nodeEnd {
		n := int(binary.LittleEndian.Uint16(path[2:]))
		if n < 4 || n > len(path) {
			break
		}
		if path[0] == nodeMedia {
			switch path[1] {
			case nodeFilePath: // a path may be split over several nodes
				if text, ok := decodeUTF16(path[4:n]); ok {
					p.file = strings.TrimSuffix(p.file, `\`) + `\` + strings.TrimPrefix(text, `\`)
				}
			case nodeFirmwareFile:
				p.firmware = p.firmware || inVolume && n == guidNode
			}
		}
		inVolume = path[0] == nodeMedia && path[1] == nodeFirmwareVolume && n == guidNode
		path = path[n:]
	}
	return p
}

// loaderName matches file names under which boot loaders are installed: shim and its helpers, GRUB, rEFInd, systemd-boot,
// iPXE, LILO, SYSLINUX, OpenCore, Limine, Windows'. What firmware starts from removable media (BOOTX64.EFI) is not
// among them: it may be a kernel as well.
var loaderName = regexp.MustCompile(`^((shim|grub|gcd|refind|systemd-boot|gummiboot|ipxe|snponly|elilo|syslinux|opencore|limine|bootmgfw).*|(mm|fb)(x64|ia32|aa64|arm|riscv64|loongarch64))\.efi$`)

// name is the file's, in lower case: FAT has no other.
func (p imagePath) name() string {
	return strings.ToLower(p.file[strings.LastIndexByte(p.file, '\\')+1:])
}

// loader tells whether the path is a boot loader's or the firmware's own, and so no kernel's.
func (p imagePath) loader() bool { return p.firmware || loaderName.MatchString(p.name()) }

// shim tells whether the path is shim's, which starts a loader.
func (p imagePath) shim() bool { return strings.HasPrefix(p.name(), "shim") && p.loader() }
