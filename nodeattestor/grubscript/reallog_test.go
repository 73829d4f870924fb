package grubscript_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/grubscript"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/vectors"
)

// ubuntu does what the configuration of Ubuntu 24.04's cloud image does. The menu's blocks, which
// GRUB measures whole, stand at ENTRIES.
const ubuntu = `
if [ -s $prefix/grubenv ]; then set have_grubenv=true; load_env; fi
if [ "${initrdfail}" = 2 ]; then
  set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
  set next_entry="${prev_entry}"
fi
if [ "${next_entry}" ]; then set default="${next_entry}"; else set default="0"; fi
if [ x"${feature_menuentry_id}" = xy ]; then menuentry_id_option="--id"; else menuentry_id_option=""; fi
export menuentry_id_option
if [ "${prev_saved_entry}" ]; then set saved_entry="${prev_saved_entry}"; fi
function initrdfail {
  if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
    if [ -z "${initrdfail}" ]; then
      set initrdfail=1
      if [ -n "${boot_once}" ]; then save_env prev_entry; fi
    fi
    save_env initrdfail
  fi; fi
}
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video { if [ x$feature_all_video_module = xy ]; then insmod all_video; else insmod efi_gop; fi; }
terminal_input console
terminal_output console
if [ "${recordfail}" = 1 ]; then
  set timeout=30
elif [ x$feature_timeout_style = xy ]; then
  set timeout_style=hidden
  set timeout=0.1
fi
if [ -n "${have_grubenv}" ]; then
  if [ -n "${initrdless_boot_fallback_triggered}" ]; then true; else
    unset initrdless_boot_fallback_triggered
    save_env initrdless_boot_fallback_triggered
  fi
fi
set menu_color_normal=white/black
set menu_color_highlight=black/light-gray
function gfxmode {
  set gfxpayload="${1}"
  if [ "${1}" = "keep" ]; then set vt_handoff=vt.handoff=7; else set vt_handoff=; fi
}
set partuuid=8270f3c9-b4e4-4345-80ee-5a62db7ebf3f
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then set linux_gfx_mode=keep; fi
  else
    set linux_gfx_mode=keep
  fi
fi
export linux_gfx_mode
ENTRIES
if [ "$grub_platform" = efi ]; then insmod bli; fi
if [ "$grub_platform" = efi ]; then
  fwsetup --is-supported
  if [ "$?" = 0 ]; then
    FIRMWARE
  fi
fi
if [ -f ${config_directory}/custom.cfg ]; then
  true
elif [ -z "${config_directory}" -a -f $prefix/custom.cfg ]; then
  true
fi
`

// A real machine's boot is explained to its kernel, and an update of kernel and command line is run
// on it: the commands are those of that boot, but where the update differs.
func TestABootOfUbuntuIsExplained(t *testing.T) {
	log, err := eventlog.Parse(vectors.RealLog(t, vectors.Expect(t, "real-logs/ubuntu-2404-amd-sevsnp")))
	if err != nil {
		t.Fatal(err)
	}
	all, err := log.Measurements(nodeclaim.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var lines []grubscript.Measured
	var entries, firmware []string
	for _, m := range all {
		before, text, _, ok := m.Text(nodeclaim.SHA256)
		if m.PCR != 8 || !ok {
			continue
		}
		lines = append(lines, grubscript.Measured{Text: text, CommandLine: strings.HasPrefix(before, "kernel_cmdline")})
		if strings.HasPrefix(text, "configfile ") {
			lines = nil // what was read before it
		}
		words, block, ok := strings.Cut(text, " {")
		for title, into := range map[string]*[]string{"menuentry Ubuntu": &entries, "submenu Advanced options for Ubuntu": &entries,
			"menuentry UEFI Firmware Settings": &firmware} {
			if rest, is := strings.CutPrefix(words, title); ok && is {
				kind, name, _ := strings.Cut(title, " ")
				*into = append(*into, kind+" '"+name+"'"+rest+" {"+block)
			}
		}
	}
	old := strings.NewReplacer("ENTRIES", strings.Join(entries, "\n"), "FIRMWARE", strings.Join(firmware, "\n")).Replace(ubuntu)
	world, steps, err := grubscript.Learn("grub.cfg", []byte(old), lines)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d commands of %d explained", len(steps), len(lines))
	update := strings.NewReplacer("6.8.0-1010", "6.8.0-1011", "console=ttyS0,115200 panic", "console=ttyS0,115200 lockdown=integrity panic")
	after, err := world.Run("grub.cfg", []byte(update.Replace(old)))
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(steps) {
		t.Fatalf("%d commands, want %d", len(after), len(steps))
	}
	for i, s := range after {
		if want := update.Replace(steps[i].Text); s.Text != want {
			t.Errorf("command %d is %q, want %q", i, s.Text, want)
		}
	}
}
