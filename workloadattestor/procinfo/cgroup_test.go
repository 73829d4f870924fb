package procinfo_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelson-project/keelson/workloadattestor/procinfo"
)

const (
	idA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	idB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	uid = "11111111-2222-3333-4444-555555555555"
	// uidSystemd is uid as the systemd driver writes it.
	uidSystemd = "11111111_2222_3333_4444_555555555555"
)

func TestContainerOfEveryDriverAndRuntime(t *testing.T) {
	cases := map[string]string{
		"v1, cgroupfs driver":                 "9:name=systemd:/kubepods/burstable/pod" + uid + "/" + idA + "\n8:pids:/kubepods/burstable/pod" + uid + "/" + idA + "\n",
		"v1, hybrid, v2 at the root":          "8:pids:/kubepods/pod" + uid + "/" + idA + "\n0::/\n",
		"v1, one controller not in use":       "8:pids:/kubepods/pod" + uid + "/" + idA + "\n7:rdma:/\n",
		"v2, cgroupfs driver":                 "0::/kubepods/besteffort/pod" + uid + "/" + idA + "\n",
		"v2, systemd driver, containerd":      "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSystemd + ".slice/cri-containerd-" + idA + ".scope\n",
		"v2, systemd driver, CRI-O":           "0::/kubepods.slice/kubepods-pod" + uidSystemd + ".slice/crio-" + idA + ".scope\n",
		"v2, cgroupfs driver, CRI-O":          "0::/kubepods/besteffort/pod" + uid + "/crio-" + idA + "\n",
		"v2, cgroupfs driver, CRI-O, nested":  "0::/kubepods/besteffort/pod" + uid + "/crio-" + idA + "/container/init.scope\n",
		"v1, cgroupfs driver, CRI-O":          "9:name=systemd:/kubepods/pod" + uid + "/crio-" + idA + "\n8:pids:/kubepods/pod" + uid + "/crio-" + idA + "\n",
		"v2, CRI-O's cgroup in the scope":     "0::/kubepods.slice/kubepods-pod" + uidSystemd + ".slice/crio-" + idA + ".scope/container\n",
		"v2, systemd driver, cri-dockerd":     "0::/kubepods.slice/kubepods-pod" + uidSystemd + ".slice/docker-" + idA + ".scope\n",
		"a container with cgroups of its own": "0::/kubepods/pod" + uid + "/" + idA + "/init.scope\n",
	}
	for name, file := range cases {
		t.Run(name, func(t *testing.T) {
			cgroups, err := procinfo.ParseCgroup([]byte(file))
			if err != nil {
				t.Fatal(err)
			}
			m, err := procinfo.ContainerOf(cgroups)
			if err != nil || m.Container != idA || len(m.Paths) != 1 {
				t.Errorf("got %+v, %v", m, err)
			}
		})
	}
}

func TestProcessesOfTheHostAreInNoContainer(t *testing.T) {
	cases := map[string]string{
		"init":                             "0::/init.scope\n",
		"the root":                         "0::/\n",
		"a service":                        "0::/system.slice/containerd.service\n",
		"CRI-O's monitor of a container":   "0::/system.slice/crio-conmon-" + idA + ".scope\n",
		"CRI-O's monitor, cgroupfs driver": "0::/kubepods/pod" + uid + "/crio-conmon-" + idA + "\n",
		"an engine that no kubelet drives": "0::/machine.slice/libpod-" + idA + "\n",
		"a name that merely holds an ID":   "0::/user.slice/x" + idA + "\n",
		"an ID in upper case":              "0::/kubepods/" + strings.ToUpper(idA) + "\n",
		"63 digits":                        "0::/kubepods/" + idA[1:] + "\n",
		"an unknown engine's scope":        "0::/machine.slice/libpod-" + idA + ".scope\n",
		"an ID with a suffix that is none": "0::/kubepods/cri-containerd-" + idA + ".slice\n",
	}
	for name, file := range cases {
		t.Run(name, func(t *testing.T) {
			cgroups, err := procinfo.ParseCgroup([]byte(file))
			if err != nil {
				t.Fatal(err)
			}
			if m, err := procinfo.ContainerOf(cgroups); !errors.Is(err, procinfo.ErrNotContainer) {
				t.Errorf("got %+v, %v", m, err)
			}
		})
	}
}

// TestPodWhoseContainerIsNotKnownSaysWhy: it gets no claims, and its operator should not have to guess.
func TestPodWhoseContainerIsNotKnownSaysWhy(t *testing.T) {
	mismatched := "/system.slice/containerd.service/kubepods-besteffort-pod" + uidSystemd + ".slice:cri-containerd:" + idA
	cases := map[string]struct{ path, cgroup, why string }{
		"kubelet systemd, runc cgroupfs":  {mismatched, mismatched, "SystemdCgroup = true"},
		"the same, at the root":           {"/kubepods-pod" + uidSystemd + ".slice:cri-containerd:" + idA, "/kubepods-pod" + uidSystemd + ".slice:cri-containerd:" + idA, "SystemdCgroup"},
		"the same, with cgroups below":    {mismatched + "/a/b", mismatched, "SystemdCgroup"},
		"CRI-O's monitor":                 {"/kubepods/besteffort/pod" + uid + "/crio-conmon-" + idA, "/kubepods/besteffort/pod" + uid + "/crio-conmon-" + idA, "monitor"},
		"a name of another engine":        {"/kubepods/pod" + uid + "/x-" + idA + "/own", "/kubepods/pod" + uid + "/x-" + idA, "another engine"},
		"the pod itself, cgroupfs driver": {"/kubepods/burstable/pod" + uid, "/kubepods/burstable/pod" + uid, "gVisor"},
		"the pod itself, systemd driver":  {"/kubepods.slice/kubepods-pod" + uidSystemd + ".slice", "/kubepods.slice/kubepods-pod" + uidSystemd + ".slice", "gVisor"},
		"Kata's own cgroup":               {"/kubepods/pod" + uid + "/kata_" + idA, "/kubepods/pod" + uid + "/kata_" + idA, "virtual machine"},
		"kind's kubelet, below its own":   {"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/y", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/y", "gVisor"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := procinfo.ContainerOf([]procinfo.Cgroup{{Path: tc.path}})
			var why *procinfo.PodCgroup
			if !errors.Is(err, procinfo.ErrNotContainer) || !errors.As(err, &why) {
				t.Fatalf("got %v", err)
			}
			if why.Cgroup != tc.cgroup || !strings.Contains(err.Error(), tc.why) {
				t.Errorf("got %q: %v", why.Cgroup, err)
			}
		})
	}
}

func TestThreat13_AmbiguousCgroupsRefused(t *testing.T) {
	cases := map[string]struct{ file, want string }{
		"two containers in two hierarchies":        {"8:pids:/kubepods/" + idA + "\n7:memory:/kubepods/" + idB + "\n", "two containers"},
		"another container's name below one's own": {"0::/kubepods/" + idA + "/" + idB + "\n", "leads through two containers"},
		"its own name below its own":               {"0::/kubepods/" + idA + "/" + idA + "\n", "leads through two containers"},
		"a scope below a container":                {"0::/kubepods/" + idA + "/cri-containerd-" + idB + ".scope\n", "leads through two containers"},
		"CRI-O's, below a container":               {"0::/kubepods/crio-" + idA + "/crio-" + idB + "\n", "leads through two containers"},
		"out of the reader's cgroup namespace":     {"0::/../../kubepods/" + idA + "\n", "host's cgroup namespace"},
		"at the edge of the cgroup namespace":      {"0::/..\n", "host's cgroup namespace"},
		"dots within the path":                     {"0::/kubepods/../" + idA + "\n", "host's cgroup namespace"},
		"dots in a hierarchy that names nothing":   {"8:pids:/kubepods/" + idA + "\n0::/../x\n", "host's cgroup namespace"},
		"a cgroup that was deleted":                {"0::/kubepods/" + idA + " (deleted)\n", "is deleted"},
		"a path that is not clean":                 {"0::/kubepods//" + idA + "\n", "shortest form"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			cgroups, err := procinfo.ParseCgroup([]byte(tc.file))
			if err != nil {
				t.Fatal(err)
			}
			m, err := procinfo.ContainerOf(cgroups)
			if err == nil || !strings.Contains(err.Error(), tc.want) || m.Container != "" || errors.Is(err, procinfo.ErrNotContainer) {
				t.Errorf("got %+v, error %v, want one with %q", m, err, tc.want)
			}
		})
	}
}

func TestParseCgroupRefuses(t *testing.T) {
	cases := map[string]struct{ file, want string }{
		"an empty file":              {"", "empty"},
		"a cut line":                 {"0::/kubepods", "middle of a line"},
		"an empty line":              {"0::/\n\n", "line 2"},
		"one colon":                  {"0:/\n", "hierarchy:controllers:path"},
		"a relative path":            {"0::kubepods\n", "does not start with /"},
		"no number":                  {"x::/\n", "not a number"},
		"a number with a sign":       {"+1:pids:/\n", "not a number"},
		"a negative number":          {"-1:pids:/\n", "not a number"},
		"a hierarchy twice":          {"0::/\n0::/a\n", "given twice"},
		"too many lines":             {strings.Repeat("0::/\n", 65), "65 lines"},
		"a path longer than any":     {"0::/" + strings.Repeat("a", 4096) + "\n", "the limit is 4096"},
		"a file larger than allowed": {strings.Repeat("a", 64<<10+1), "larger than"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := procinfo.ParseCgroup([]byte(tc.file)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestParseCgroupKeepsColonsInPaths(t *testing.T) {
	got, err := procinfo.ParseCgroup([]byte("3:cpu,cpuacct:/a:b\n0::/\n"))
	want := []procinfo.Cgroup{{Hierarchy: 3, Controllers: "cpu,cpuacct", Path: "/a:b"}, {Path: "/"}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
}

func TestThreat13_CgroupThatOnlyBearsTheContainersNameRefused(t *testing.T) {
	systemd := "kubepods-burstable-pod" + uidSystemd + ".slice:cri-containerd:" + idA
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSystemd + ".slice"
	cases := map[string]struct {
		kernel, runtime string
		want            string
	}{
		"cgroupfs driver, the same path":     {"/kubepods/pod" + uid + "/" + idA, "/kubepods/pod" + uid + "/" + idA, ""},
		"cgroupfs driver, below it":          {"/kubepods/pod" + uid + "/" + idA + "/x", "/kubepods/pod" + uid + "/" + idA, ""},
		"systemd driver, the same path":      {slice + "/cri-containerd-" + idA + ".scope", systemd, ""},
		"systemd driver, below it":           {slice + "/cri-containerd-" + idA + ".scope/init", systemd, ""},
		"CRI-O, cgroupfs driver":             {"/kubepods/pod" + uid + "/crio-" + idA, "/kubepods/pod" + uid + "/crio-" + idA, ""},
		"CRI-O, cgroupfs driver, elsewhere":  {"/user.slice/crio-" + idA, "/kubepods/pod" + uid + "/crio-" + idA, "refused"},
		"CRI-O, systemd driver":              {slice + "/crio-" + idA + ".scope/container", strings.Replace(systemd, "cri-containerd", "crio", 1), ""},
		"systemd driver, default slice":      {"/system.slice/cri-containerd-" + idA + ".scope", ":cri-containerd:" + idA, ""},
		"systemd driver, the root slice":     {"/cri-containerd-" + idA + ".scope", "-.slice:cri-containerd:" + idA, ""},
		"a host user's subtree":              {"/user.slice/user-1000.slice/user@1000.service/cri-containerd-" + idA + ".scope", systemd, "refused"},
		"another pod's cgroup":               {"/kubepods/pod" + idB[:8] + "/" + idA, "/kubepods/pod" + uid + "/" + idA, "refused"},
		"a prefix of the path only":          {"/kubepods/" + idA, "/kubepods/" + idA[:60], "refused"},
		"the runtime tells no path":          {"/kubepods/" + idA, "", "want an absolute path"},
		"the runtime tells the root":         {"/kubepods/" + idA, "/", "want an absolute path"},
		"the runtime tells an unclean path":  {"/kubepods/" + idA, "/kubepods/../kubepods/" + idA, "want an absolute path"},
		"the runtime tells a relative path":  {"/kubepods/" + idA, "kubepods/" + idA, "want an absolute path"},
		"a slice with an empty part":         {"/kubepods/" + idA, "a--b.slice:x:y", "malformed"},
		"a slice that is none":               {"/kubepods/" + idA, "a:x:y", "malformed"},
		"four parts":                         {"/kubepods/" + idA, "a.slice:x:y:z", "want an absolute path"},
		"a slash hidden in the systemd form": {"/kubepods/" + idA, "a.slice:../x:y", "want an absolute path"},
		"an empty name in the systemd form":  {"/kubepods/" + idA, "a.slice:x:", "want an absolute path"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			m := procinfo.Membership{Container: idA, Paths: []string{tc.kernel}}
			err := m.Within(tc.runtime)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestThreat13_OnePathElsewhereIsEnoughToRefuse(t *testing.T) {
	m := procinfo.Membership{Container: idA, Paths: []string{"/kubepods/" + idA, "/user/" + idA}}
	if err := m.Within("/kubepods/" + idA); err == nil {
		t.Error("a hierarchy in which the process is elsewhere is accepted")
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("9:name=systemd:/kubepods/pod/"+idA+"\n0::/\n"), "/kubepods/pod/"+idA)
	f.Add([]byte("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-"+idA+".scope\n"), "kubepods-pod1.slice:cri-containerd:"+idA)
	f.Add([]byte("0::/../"+idA+"\n"), "")
	f.Add([]byte("0::/kubepods/besteffort/pod"+uid+"/crio-"+idA+"\n"), "/kubepods/besteffort/pod"+uid+"/crio-"+idA)
	f.Add([]byte("0::/kubepods/pod"+uid+"/crio-conmon-"+idA+"\n"), "")
	f.Add([]byte("0::/system.slice/kubepods-pod"+uidSystemd+".slice:cri-containerd:"+idA+"/x\n"), "kubepods-pod1.slice:cri-containerd:"+idA)
	f.Add([]byte("1:a:/"+idA+"/"+idB+"\n"), ":::")
	f.Fuzz(func(t *testing.T, file []byte, runtimePath string) {
		cgroups, err := procinfo.ParseCgroup(file)
		if err != nil {
			return
		}
		m, err := procinfo.ContainerOf(cgroups)
		if err != nil {
			var why *procinfo.PodCgroup
			if errors.As(err, &why) && (why.Cgroup == "" || why.Why == "") {
				t.Fatalf("a pod's cgroup without a reason: %+v", why)
			}
			if m.Container != "" {
				t.Fatalf("refused, but names container %s", m.Container)
			}
			return
		}
		if len(m.Container) != 64 || strings.Trim(m.Container, "0123456789abcdef") != "" || len(m.Paths) == 0 {
			t.Fatalf("%+v", m)
		}
		for _, c := range cgroups {
			if strings.Contains(c.Path+"/", "/../") {
				t.Fatalf("path %q accepted", c.Path)
			}
		}
		if err := m.Within(runtimePath); err == nil && len(runtimePath) < 2 {
			t.Fatalf("runtime path %q accepted", runtimePath)
		}
	})
}
