package grubscript_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/grubscript"
)

// measured are lines: commands, and after "> " kernels' command lines.
func measured(lines string) []grubscript.Measured {
	var out []grubscript.Measured
	for _, l := range strings.Split(strings.Trim(lines, "\n"), "\n") {
		text, line := strings.CutPrefix(l, "> ")
		out = append(out, grubscript.Measured{Text: strings.ReplaceAll(text, "↵", "\n"), CommandLine: line})
	}
	return out
}

func written(steps []grubscript.Step) string {
	var lines []string
	for _, s := range steps {
		text := strings.ReplaceAll(s.Text, "\n", "↵")
		if s.CommandLine {
			text = "> " + text
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n")
}

// generated is a configuration as grub-mkconfig writes it (Debian 12 and Ubuntu 24.04), shortened.
const generated = `# a comment
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi

if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option

function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=hidden
    set timeout=0
  # another, of
  # two lines
  elif sleep --interruptible 0 ; then
    set timeout=0
  fi
fi
menuentry 'Debian' --class debian $menuentry_id_option 'gnulinux-simple' {
	recordfail
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 94f0
	echo	'Loading Linux 6.1 ...'
	linux	/vmlinuz-6.1 root=UUID=94f0 ro quiet $vt_handoff
	initrd	/initrd.img-6.1
}
submenu 'Advanced options' $menuentry_id_option 'advanced' {
	menuentry 'Debian, 6.1' --class debian $menuentry_id_option 'advanced-6.1' {
		linux	/vmlinuz-6.1 root=UUID=94f0 ro single
	}
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
`

const debianEntry = "{↵\trecordfail↵\tload_video↵\tinsmod gzio↵\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi↵" +
	"\tsearch --no-floppy --fs-uuid --set=root 94f0↵\techo\t'Loading Linux 6.1 ...'↵" +
	"\tlinux\t/vmlinuz-6.1 root=UUID=94f0 ro quiet $vt_handoff↵\tinitrd\t/initrd.img-6.1↵}"

const advanced = "submenu Advanced options --id advanced {↵\tmenuentry 'Debian, 6.1' --class debian $menuentry_id_option 'advanced-6.1' {↵" +
	"\t\tlinux\t/vmlinuz-6.1 root=UUID=94f0 ro single↵\t}↵}"

const booted = `[ -s (hd0,gpt2)/grub/grubenv ]
set have_grubenv=true
load_env
[  ]
set default=0
[ xy = xy ]
menuentry_id_option=--id
export menuentry_id_option
[  = 1 ]
[ xy = xy ]
set timeout_style=hidden
set timeout=0
menuentry Debian --class debian --id gnulinux-simple ` + debianEntry + `
` + advanced + `
[ -f (hd0,gpt2)/grub/custom.cfg ]
setparams Debian
recordfail
set recordfail=1
[ -n true ]
[ -z  ]
save_env recordfail
load_video
[ xy = xy ]
insmod all_video
insmod gzio
[ xefi = xxen ]
search --no-floppy --fs-uuid --set=root 94f0
echo Loading Linux 6.1 ...
linux /vmlinuz-6.1 root=UUID=94f0 ro quiet
> /vmlinuz-6.1 root=UUID=94f0 ro quiet
initrd /initrd.img-6.1`

func TestAnUpdatedConfigurationIsRun(t *testing.T) {
	world, steps, err := grubscript.Learn("old", []byte(generated), measured(booted))
	if err != nil {
		t.Fatal(err)
	}
	if got := written(steps); got != booted {
		t.Errorf("explained:\n%s", got)
	}
	for name, c := range map[string]struct{ replace, want []string }{
		"the same": {},
		"a kernel": {[]string{"6.1", "6.2"}, []string{"6.1", "6.2"}},
		"the command line, quoted": {[]string{"ro quiet", `"ro" 'qui'et spl\ash`}, []string{
			"ro quiet $", `"ro" 'qui'et spl\ash $`, "ro quiet", "ro quiet splash"}},
		"a variable of its own": {[]string{"\tlinux\t/", "\tset x='a  b'; linux\t\"/\"", " ro quiet", " ro $x quiet"},
			[]string{"\tlinux\t/vmlinuz-6.1 root=UUID=94f0 ro quiet", "\tset x='a  b'; linux\t\"/\"vmlinuz-6.1 root=UUID=94f0 ro $x quiet",
				"\nlinux /", "\nset x=a  b\nlinux /", "94f0 ro quiet\n", "94f0 ro a b quiet\n",
				"\t\tlinux\t/vmlinuz", "\t\tset x='a  b'; linux\t\"/\"vmlinuz"}},
		"the entry in the submenu": {[]string{`default="0"`, `default="advanced>advanced-6.1"`},
			[]string{"default=0", "default=advanced>advanced-6.1", booted[strings.Index(booted, "setparams Debian"):],
				"setparams Advanced options\nmenuentry Debian, 6.1 --class debian --id advanced-6.1 {↵\t\tlinux\t/vmlinuz-6.1 root=UUID=94f0 ro single↵\t}\n" +
					"setparams Debian, 6.1\nlinux /vmlinuz-6.1 root=UUID=94f0 ro single\n> /vmlinuz-6.1 root=UUID=94f0 ro single"}},
	} {
		t.Run(name, func(t *testing.T) {
			script := strings.NewReplacer(c.replace...).Replace(generated)
			steps, err := world.Run("new", []byte(script))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := written(steps), strings.NewReplacer(c.want...).Replace(booted); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestWhatIsNotInterpretedIsRefusedWithItsLine(t *testing.T) {
	world, _, err := grubscript.Learn("old", []byte(generated), measured(booted))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("if true; then ", 40) + strings.Repeat("fi; ", 40)
	for script, want := range map[string]string{
		"linux /a\nblscfg":                                                   `line 2: the command "blscfg" is not interpreted`,
		"\nfor x in a b; do echo $x; done":                                   `line 2: "for" is not interpreted`,
		"while true; do true; done":                                          `"while" is not interpreted`,
		"if [ -f /a ]; then true; fi":                                        `line 1: whether "[ -f /a ]" holds was not asked in the boot before`,
		"if search --set=root x; then true; fi":                              `whether "search --set=root x" holds`,
		"if [ a -lt b ]; then true; fi":                                      `whether "[ a -lt b ]" holds`,
		"true\nlinux /a $never_asked":                                        "line 2: the value of $never_asked was not seen",
		"search.fs_uuid 1 timeout\nlinux /a $timeout":                        "line 2: the value of $timeout was not seen",
		"search --set x\nlinux /a $root":                                     "line 2: the value of $root was not seen",
		"load_env\nif [ \"$next_entry\" ]; then true; fi\nlinux /a $timeout": "line 3: the value of $timeout was not seen",
		"linux /a\ninitrd /*.img":                                            "line 2: wildcards are not interpreted",
		"linux /a 'b c'":                                                     "it has a space, quote or backslash",
		"linux":                                                              "linux names no kernel",
		"true | true":                                                        `'|' is not interpreted`,
		"true && true":                                                       `'&' is not interpreted`,
		"source /b":                                                          `the command "source" is not interpreted`,
		"configfile /b":                                                      `the command "configfile" is not interpreted`,
		"echo $\"a\"":                                                        "followed by no variable",
		"echo ${a":                                                           "has no end",
		"echo 'a":                                                            "a quote has no end",
		"echo \"a":                                                           "a quote has no end",
		"echo \\":                                                            "escapes nothing",
		"function { true; }":                                                 "has no name",
		"function f true":                                                    "has no body",
		"function f { f; }\nf":                                               "blocks in one another",
		"menuentry a { true; ":                                               "a block has no end",
		"menuentry a":                                                        "without a block",
		"menuentry --id a { true; }":                                         "has no title",
		"menuentry a --id { true; }":                                         "--id has no value",
		"menuentry a --new { true; }":                                        `"--new" is not interpreted`,
		"set default=0\nmenuentry a { boot; }":                               `the command "boot" is not interpreted`,
		"set default=2\nmenuentry a { linux /a; }":                           `the menu has no entry "2"`,
		"set default=b\nmenuentry a { linux /a; }":                           `the menu has no entry "b"`,
		"set default=0\nmenuentry a { true; }":                               "starts no kernel",
		"set default=0":                                                      "the menu has no entry",
		"if true; fi":                                                        `no test and "then"`,
		"if true; then":                                                      `has no "fi"`,
		"if true; then true; else true; else true; fi":                       `has no "fi"`,
		"fi":             `"fi" ends nothing`,
		"}":              `"}" ends nothing`,
		"{ true; }":      "without a command",
		"echo { true; }": "echo with a block",
		"[ a":            `"[" without "]"`,
		"set 1=2":        "is not interpreted",
		"a-b=c":          "is not interpreted",
		long:             "conditions in one another",
		strings.Repeat("#", grubscript.MaxScript+1):      "more than the",
		strings.Repeat("true\n", 10_001):                 "more than 10000 commands",
		"set a=x\n" + strings.Repeat("set a=$a$a\n", 20): "of more than 65536 bytes",
	} {
		if _, err := world.Run("new.cfg", []byte(script)); err == nil || !strings.HasPrefix(err.Error(), "new.cfg: line ") ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", script, err, want)
		}
	}
}

func TestABootThatTheConfigurationDoesNotExplain(t *testing.T) {
	for name, c := range map[string]struct{ replace, want string }{
		"another text":      {"echo Loading Linux 6.1 ...", "line 51: the configuration says"},
		"one more":          {"", "nothing more"},
		"another entry ran": {"setparams Debian", "setparams Advanced"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := measured(booted)
			switch at := slices.Index(lines, grubscript.Measured{Text: c.replace}); {
			case at < 0:
				lines = append(lines, grubscript.Measured{Text: "boot"})
			default:
				lines[at].Text = "setparams Advanced options"
			}
			_, _, err := grubscript.Learn("old.cfg", []byte(generated), lines)
			if err == nil || !strings.HasPrefix(err.Error(), "old.cfg: line ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A test whose outcome leaves no trace is not known: the updated configuration may do something by it.
func TestAnOutcomeThatLeftNoTraceIsNotKnown(t *testing.T) {
	old := "if [ -f /a ]; then true; else true; fi\nif [ -f /b ]; then true; fi\nlinux /k\nboot"
	world, _, err := grubscript.Learn("old", []byte(old), measured("[ -f /a ]\ntrue\n[ -f /b ]\nlinux /k\n> /k\nboot"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := world.Run("new", []byte("if [ -f /a ]; then linux /a; else linux /b; fi\nboot")); err == nil {
		t.Error("a branch was chosen by nothing")
	}
	if steps, err := world.Run("new", []byte("if [ -f /b ]; then linux /a; else linux /b; fi\nboot")); err != nil || steps[1].Text != "linux /b" {
		t.Errorf("%v, %v", steps, err)
	}
}

func FuzzLearn(f *testing.F) {
	f.Add(generated, booted)
	f.Add("if [ $a$b = \"$c\" ]; then true; fi\nfunction f { linux $1 ${2}; }\nf a 'b'", "[ = ]\nf a b\nlinux a b\n> a b")
	f.Fuzz(func(t *testing.T, script, lines string) {
		world, steps, err := grubscript.Learn("old", []byte(script), measured(lines))
		if err != nil {
			return
		}
		if got := written(steps); got != written2(lines) {
			t.Errorf("explained %q as %q", lines, got)
		}
		again, err := world.Run("old", []byte(script))
		if err == nil && written(again) != written(steps) {
			t.Errorf("the same configuration does something else: %q, %q", written(steps), written(again))
		}
	})
}

// written2 is how written writes what was measured.
func written2(lines string) string {
	var steps []grubscript.Step
	for _, m := range measured(lines) {
		steps = append(steps, grubscript.Step{Text: m.Text, CommandLine: m.CommandLine})
	}
	return written(steps)
}
