package vmboot

import (
	"context"
	"crypto/sha256"
	"debug/pe"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Loader is what starts the kernel.
type Loader string

// The loaders. Unified is the golden image's: firmware starts a unified kernel image.
const (
	Unified            Loader = ""
	SystemdBootUnified Loader = "systemd-boot, unified kernel image"
	SystemdBoot        Loader = "systemd-boot"
	GRUB               Loader = "shim and GRUB"
)

// Changes are what differs from the golden image; the zero value is the golden image.
type Changes struct {
	// Loader starts the kernel.
	Loader Loader
	// CommandLine is added to DefaultCommandLine.
	CommandLine string
	// Files are added to the initrd: content by path ("etc/motd").
	Files map[string]string
	// Kernel is appended to the kernel's file. The kernel boots all the same: an EFI image's
	// sections say what is loaded.
	Kernel []byte
	// Stub is another systemd-stub than the one that is installed.
	Stub string
	// Sections are more sections of the unified kernel image, content by name (".pcrpkey").
	Sections map[string]string
	// Entry makes systemd-boot's entry of the kernel's command line; nil is the golden one.
	Entry func(line string) string
	// GRUBConfig makes GRUB's configuration of the kernel's command line; nil is the golden one.
	GRUBConfig func(line string) string
	// Partition are more files of the boot partition, content by path.
	Partition map[string][]byte
}

// Image is a disk that firmware boots from: an EFI system partition.
type Image struct {
	// KernelSHA256 and InitrdSHA256 are the files' digests, which stub and kernel measure.
	KernelSHA256, InitrdSHA256 [sha256.Size]byte
	// Loaders are the files of the images that run before the kernel or unified kernel image, in
	// order. Unified, Kernel, Initrd and Config are those of the rest, "" where there is none.
	// CommandLine is the kernel's.
	Loaders                         []string
	Unified, Kernel, Initrd, Config string
	CommandLine                     string

	path string
}

// Build makes an image in dir.
func (k *Kit) Build(ctx context.Context, dir string, c Changes) (*Image, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("vmboot: image: %w", err)
	}
	kernel := append(k.kernel.image[:len(k.kernel.image):len(k.kernel.image)], c.Kernel...)
	initrd := k.base
	if len(c.Files) > 0 {
		more := map[string]file{}
		for name, content := range c.Files {
			more[name] = file{mode: modeFile, content: []byte(content)}
		}
		// The kernel unpacks one archive after the other.
		initrd = append(k.base[:len(k.base):len(k.base)], archive(more)...)
	}
	line := strings.TrimSuffix(DefaultCommandLine+" "+c.CommandLine, " ")
	i := &Image{KernelSHA256: sha256.Sum256(kernel), InitrdSHA256: sha256.Sum256(initrd), CommandLine: line}
	var files map[string]string
	var err error
	switch c.Loader {
	case Unified, SystemdBootUnified:
		files, err = k.unified(ctx, dir, c, i, kernel, initrd)
	case SystemdBoot, GRUB:
		files, err = k.plain(dir, c, i, kernel, initrd)
	}
	if err != nil {
		return nil, err
	}
	for name, content := range c.Partition {
		if files[name], err = write(dir, "more-"+path.Base(name), content); err != nil {
			return nil, err
		}
	}
	i.path, err = k.partition(ctx, dir, files)
	return i, err
}

func write(dir, name string, content []byte) (string, error) {
	out := filepath.Join(dir, name)
	if err := os.WriteFile(out, content, 0o600); err != nil {
		return "", fmt.Errorf("vmboot: image: %w", err)
	}
	return out, nil
}

// unified makes a unified kernel image and returns the files of the boot partition.
func (k *Kit) unified(ctx context.Context, dir string, c Changes, i *Image, kernel, initrd []byte) (map[string]string,
	error) {
	sections := map[string][]byte{
		".osrel": []byte("ID=keelson-test\nNAME=\"Keelson test guest\"\n"), ".cmdline": []byte(i.CommandLine),
		".linux": kernel, ".initrd": initrd,
	}
	for name, content := range c.Sections {
		sections[name] = []byte(content)
	}
	stub := k.system["systemd-stub"]
	if c.Stub != "" {
		stub = c.Stub
	}
	// Where systemd-stub's documentation puts the sections (systemd 252, systemd-stub(7)); others
	// go before the kernel.
	places := map[string]int{".osrel": 0x20000, ".cmdline": 0x30000, ".linux": 0x2000000, ".initrd": 0x3000000}
	base, err := imageBase(stub)
	if err != nil {
		return nil, err
	}
	free, args := 0x40000, []string{}
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		content, err := write(dir, strings.TrimPrefix(name, "."), sections[name])
		if err != nil {
			return nil, err
		}
		at, ok := places[name]
		if !ok {
			at = free
			free += 0x10000
		}
		args = append(args, "--add-section", name+"="+content, "--change-section-vma", fmt.Sprintf("%s=%#x", name, base+uint64(at)))
	}
	i.Unified = filepath.Join(dir, "unified.efi")
	if _, err := tool(ctx, dir, k.system["objcopy"], append(args, stub, i.Unified)...); err != nil {
		return nil, err
	}
	if c.Loader == Unified {
		return map[string]string{"EFI/BOOT/BOOTX64.EFI": i.Unified}, nil
	}
	i.Loaders = []string{k.system["systemd-boot"]}
	conf, err := write(dir, "loader.conf", []byte("timeout 0\n"))
	return map[string]string{"EFI/BOOT/BOOTX64.EFI": i.Loaders[0], "EFI/Linux/keelson.efi": i.Unified,
		"loader/loader.conf": conf}, err
}

// imageBase is where an EFI image wants to be loaded, from which objcopy counts.
func imageBase(path string) (base uint64, err error) {
	f, err := pe.Open(path)
	if err != nil {
		return 0, fmt.Errorf("vmboot: %s: %w", path, err)
	}
	if h, ok := f.OptionalHeader.(*pe.OptionalHeader64); ok {
		base = h.ImageBase
	}
	return base, f.Close()
}

// plain writes kernel, initrd and the loader's configuration, and returns the files of the boot
// partition.
func (k *Kit) plain(dir string, c Changes, i *Image, kernel, initrd []byte) (map[string]string, error) {
	var err error
	if i.Kernel, err = write(dir, "vmlinuz", kernel); err != nil {
		return nil, err
	}
	if i.Initrd, err = write(dir, "initrd.img", initrd); err != nil {
		return nil, err
	}
	files := map[string]string{"keelson/vmlinuz": i.Kernel, "keelson/initrd.img": i.Initrd}
	if c.Loader == GRUB {
		config := grubConfig
		if c.GRUBConfig != nil {
			config = c.GRUBConfig
		}
		i.Loaders = []string{filepath.Join(k.shim, "usr/lib/shim/shimx64.efi.signed"), filepath.Join(k.grub,
			"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")}
		i.Config, err = write(dir, "grub.cfg", []byte(config(i.CommandLine)))
		files["EFI/BOOT/BOOTX64.EFI"], files["EFI/BOOT/grubx64.efi"], files["EFI/debian/grub.cfg"] = i.Loaders[0],
			i.Loaders[1], i.Config
		return files, err
	}
	i.Loaders = []string{k.system["systemd-boot"]}
	entry := "title Keelson\nlinux /keelson/vmlinuz\ninitrd /keelson/initrd.img\noptions " + i.CommandLine + "\n"
	if c.Entry != nil {
		entry = c.Entry(i.CommandLine)
	}
	i.CommandLine = `initrd=\keelson\initrd.img ` + i.CommandLine
	if i.Config, err = write(dir, "keelson.conf", []byte(entry)); err != nil {
		return nil, err
	}
	conf, err := write(dir, "loader.conf", []byte("timeout 0\n"))
	files["EFI/BOOT/BOOTX64.EFI"], files["loader/loader.conf"], files["loader/entries/keelson.conf"] = i.Loaders[0],
		conf, i.Config
	return files, err
}

// partition makes the disk, by path of each file on it.
func (k *Kit) partition(ctx context.Context, dir string, files map[string]string) (string, error) {
	const room = 32 << 20 // for the file system's own
	size := int64(room)
	folders := map[string]bool{}
	for name, content := range files {
		info, err := os.Stat(content)
		if err != nil {
			return "", fmt.Errorf("vmboot: image: %w", err)
		}
		size += info.Size()
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			folders[d] = true
		}
	}
	disk, err := write(dir, "boot.img", nil)
	if err != nil {
		return "", err
	}
	if err := os.Truncate(disk, size&^(1<<20-1)); err != nil {
		return "", fmt.Errorf("vmboot: image: %w", err)
	}
	commands := [][]string{{"mformat", "-i", disk, "::"}}
	for _, d := range slices.Sorted(maps.Keys(folders)) {
		commands = append(commands, []string{"mmd", "-i", disk, "::/" + d})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		commands = append(commands, []string{"mcopy", "-i", disk, files[name], "::/" + name})
	}
	for _, args := range commands {
		if _, err := tool(ctx, dir, k.system["mtools"], append([]string{"-c"}, args...)...); err != nil {
			return "", err
		}
	}
	return disk, nil
}

// grubConfig has what generated configurations have: questions about files and the environment block, a function, a
// menu. GRUB 2.06 starts the kernel by "linuxefi" through its EFI stub, which hands the firmware's log on; "linux" does so only
// where secure boot is on.
func grubConfig(line string) string {
	return `if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ]; then
  set default="${next_entry}"
else
  set default="0"
fi
set timeout=0
function load_modules {
  insmod gzio
  if [ x$grub_platform = xefi ]; then insmod part_gpt; insmod fat; fi
}
menuentry 'Keelson' --class keelson --id keelson {
	load_modules
	linuxefi	/keelson/vmlinuz ` + line + `
	initrdefi	/keelson/initrd.img
}
if [ -f ${config_directory}/custom.cfg ]; then source ${config_directory}/custom.cfg; fi
`
}
