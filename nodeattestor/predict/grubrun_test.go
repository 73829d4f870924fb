package predict_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/predict"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// menuConfig is a configuration with a menu; each version has a kernel of its own.
func menuConfig(version, line string, more ...string) predict.File {
	text := fmt.Sprintf(`if [ -s $prefix/grubenv ]; then load_env; fi
set default="${saved_entry}"
function load_video { insmod all_video; }
menuentry 'Keelson %[1]s' --id keelson {
  load_video
  search --no-floppy --fs-uuid --set=root 94f0
  linux /vmlinuz-%[1]s %[2]s
  initrd /initrd-%[1]s
}
%[3]s
`, version, line, strings.Join(more, "\n"))
	return predict.File{Name: version + "/grub.cfg", Data: []byte(text)}
}

// measuredMenu is what shim and GRUB measure with that configuration, told without an interpreter. The
// kernel's stub measures the command line.
func measuredMenu(t *testing.T, version, line string, config predict.File, unread ...string) *vectors.Log {
	l := machine()
	started(t, l, shim.Data, image(part{name: ".text", content: []byte("grub")}), linux(version).Data)
	told := func(text string) { l.Event(8, vectors.IPL, []byte(text), []byte("grub_cmd: "+text+"\x00")) }
	file := func(name string, data []byte) {
		if !slices.Contains(unread, name) {
			l.Event(9, vectors.IPL, data, []byte(name+"\x00"))
		}
	}
	told("configfile (hd0)/grub.cfg")
	file("(hd0)/grub.cfg", config.Data)
	told("[ -s (hd0)/grubenv ]")
	file("(hd0)/grubenv", []byte("environment"))
	told("load_env")
	file("(hd0)/grubenv", []byte("environment"))
	told("set default=keelson")
	_, block, _ := strings.Cut(string(config.Data), "--id keelson ")
	block, _, _ = strings.Cut(block, "\n}\n")
	told("menuentry Keelson " + version + " --id keelson " + block + "\n}")
	told("setparams Keelson " + version)
	told("load_video")
	told("insmod all_video")
	file("(hd0)/all_video.mod", []byte("module"))
	told("search --no-floppy --fs-uuid --set=root 94f0")
	text := "/vmlinuz-" + version + " " + line
	told("linux " + text)
	file("/vmlinuz-"+version, linux(version).Data)
	l.Event(8, vectors.IPL, []byte(text), []byte("kernel_cmdline: "+text+"\x00"))
	told("initrd /initrd-" + version)
	file("/initrd-"+version, []byte("initrd"+version))
	l.Measure(9, 6, append(vectors.UTF16("BOOT_IMAGE="+text), 0, 0))
	return l
}

func menuChange(after predict.File) predict.GRUB {
	initrd := func(version string) predict.File {
		return predict.File{Name: "boot/initrd-" + version, Data: []byte("initrd" + version)}
	}
	return predict.GRUB{Files: []predict.Replacement{{Old: linux("6.1"), New: linux("6.2")}, {Old: initrd("6.1"), New: initrd("6.2")},
		{Old: menuConfig("6.1", "quiet"), New: after}}}
}

// A new configuration needs no texts: it is interpreted, and the set is the one that a capture of the
// boot makes, byte for byte.
func TestANewConfigurationOfGRUBIsInterpreted(t *testing.T) {
	after := menuConfig("6.2", "ro  quiet lockdown=integrity")
	p := accepted(t, measuredMenu(t, "6.1", "quiet", menuConfig("6.1", "quiet")),
		measuredMenu(t, "6.2", "ro quiet lockdown=integrity", after), "", "", menuChange(after))
	if want := "/vmlinuz-6.2 ro quiet lockdown=integrity"; p.CommandLine != want {
		t.Errorf("command line %q, want %q", p.CommandLine, want)
	}
	if len(p.Notes) == 0 || !strings.Contains(p.Notes[0], "environment block") {
		t.Errorf("notes: %q", p.Notes)
	}
}

func TestAConfigurationThatCannotBeInterpretedIsNamedWithItsLine(t *testing.T) {
	quiet := menuConfig("6.1", "quiet")
	silent := measuredMenu(t, "6.1", "quiet", quiet, "/initrd-6.1")
	late := measuredMenu(t, "6.1", "quiet", quiet).Measure(9, vectors.IPL, []byte("after the stub"))
	nameless := measuredMenu(t, "6.1", "quiet", quiet).Event(8, vectors.IPL, []byte("x"), []byte("y"))
	twice := menuChange(menuConfig("6.2", "quiet"))
	twice.Files = append(twice.Files, predict.Replacement{Old: predict.File{Name: "a", Data: []byte("environment")},
		New: predict.File{Name: "other/vmlinuz-6.2", Data: []byte("z")}})
	other := menuChange(menuConfig("6.2", "quiet"))
	other.Files[2].Old.Data = append(other.Files[2].Old.Data, "set x=y\n"...)
	for name, c := range map[string]struct {
		before *vectors.Log
		change predict.GRUB
		says   string
	}{
		"a module":                  {nil, menuChange(menuConfig("6.2", "quiet", "insmod btrfs")), "6.2/grub.cfg: line 10: which files \"insmod btrfs\" reads is not known"},
		"a loop":                    {nil, menuChange(menuConfig("6.2", "quiet", "for x in a; do true; done")), "6.2/grub.cfg: line 10: \"for\" is not interpreted"},
		"a question":                {nil, menuChange(menuConfig("6.2", "quiet", "if [ -f /x ]; then true; fi")), "line 10: whether \"[ -f /x ]\" holds was not asked"},
		"a file":                    {nil, menuChange(menuConfig("6.3", "quiet")), "line 7: file /vmlinuz-6.3 was not loaded in the boot before"},
		"file search":               {nil, menuChange(menuConfig("6.2", "quiet", "search --file /x")), "line 10: which files \"search --file /x\" reads"},
		"two files":                 {nil, twice, "several of the new files are named vmlinuz-6.2"},
		"another old configuration": {nil, other, "6.1/grub.cfg: the boot before did not read the old one"},
		"another boot": {measuredMenu(t, "6.1", "single", quiet), menuChange(menuConfig("6.2", "quiet")),
			"6.1/grub.cfg: line 7: the configuration says \"linux /vmlinuz-6.1 quiet\", but the boot before measured \"linux /vmlinuz-6.1 single\""},
		"a silent GRUB":       {silent, menuChange(menuConfig("6.2", "quiet")), "line 8: \"initrd /initrd-6.1\" names 1 files, and the boot before read 0"},
		"files that are late": {late, menuChange(menuConfig("6.2", "quiet")), "comes after the kernel's stub has measured"},
		"a text unconfirmed":  {nameless, menuChange(menuConfig("6.2", "quiet")), "is no text that its digest confirms"},
	} {
		t.Run(name, func(t *testing.T) {
			before := c.before
			if before == nil {
				before = measuredMenu(t, "6.1", "quiet", quiet)
			}
			if name == "a silent GRUB" {
				c.change.Files = append(c.change.Files[:1], c.change.Files[2])
			}
			p, err := base(t, before).Predict(c.change)
			if name == "another old configuration" {
				if err == nil || !strings.Contains(err.Error(), "neither read this file") {
					t.Errorf("%v", err)
				}
				return
			}
			must(t, err)
			if !strings.Contains(p.Unknown[8], c.says) || !strings.Contains(p.Unknown[8], "Say with texts") {
				t.Errorf("%q, want %q", p.Unknown[8], c.says)
			}
			captured, err := reference.Capture("old", evidence(t, before, ""))
			must(t, err)
			set, _, err := p.Set(captured, "new", nil)
			if err == nil && strings.Contains(string(set.Marshal()), "\"8\":") {
				t.Error("the set pins PCR 8 all the same")
			}
		})
	}
}
