package confined_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/pod-security-admission/policy"

	"github.com/keelson-project/keelson/workloadattestor/confined"
)

func ptr[T any](v T) *T { return &v }

// kinds are the kinds of containers that a pod has.
var kinds = []string{"init", "main", "debug"}

// hardened is what level restricted asks of a container.
func hardened() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: ptr(false), RunAsNonRoot: ptr(true),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// pod has one container of each kind, all hardened, and a volume of its own.
func pod() *corev1.Pod {
	mounts := []corev1.VolumeMount{{Name: "own", MountPath: "/own"}, {Name: "v", MountPath: "/v", ReadOnly: true}}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", UID: "pod-uid"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "init", VolumeMounts: slices.Clone(mounts), SecurityContext: hardened()}},
		Containers:     []corev1.Container{{Name: "main", VolumeMounts: slices.Clone(mounts), SecurityContext: hardened()}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Name: "debug", VolumeMounts: slices.Clone(mounts), SecurityContext: hardened()}}},
		Volumes: []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}}
}

// at is a container of a kind, as far as all kinds are alike.
func at(p *corev1.Pod, kind string) *corev1.Container {
	switch kind {
	case "init":
		return &p.Spec.InitContainers[0]
	case "main":
		return &p.Spec.Containers[0]
	default:
		return (*corev1.Container)(&p.Spec.EphemeralContainers[0].EphemeralContainerCommon)
	}
}

func volume(p *corev1.Pod, source corev1.VolumeSource) {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: source})
}

func hostPath(p *corev1.Pod, path string) {
	volume(p, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}})
}

func claim(p *corev1.Pod) {
	volume(p, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}})
}

// verdict is which levels accept a pod.
type verdict int

const (
	neither verdict = iota
	baselineOnly
	both
)

func judge(p *corev1.Pod, rules confined.Rules) (verdict, []string) {
	baseline, restricted := confined.Judge(confined.Baseline, p, rules), confined.Judge(confined.Restricted, p, rules)
	switch {
	case baseline.Met() && restricted.Met():
		return both, nil
	case baseline.Met():
		return baselineOnly, restricted.Reasons()
	default:
		return neither, append(baseline.Reasons(), restricted.Reasons()...)
	}
}

// container changes one container's security context.
type change struct {
	apply func(*corev1.Container)
	want  verdict
	say   string // part of the reason
}

// perContainer are the controls of the Pod Security Standards on containers. Each is tried on every kind of container.
var perContainer = map[string]change{
	"privileged":            {func(c *corev1.Container) { c.SecurityContext.Privileged = ptr(true) }, neither, "privileged"},
	"privileged, not":       {func(c *corev1.Container) { c.SecurityContext.Privileged = ptr(false) }, both, ""},
	"no security context":   {func(c *corev1.Container) { c.SecurityContext = nil }, baselineOnly, "allowPrivilegeEscalation"},
	"adds NET_BIND_SERVICE": {add("NET_BIND_SERVICE"), both, ""},
	"adds CHOWN":            {add("CHOWN"), baselineOnly, "CHOWN"},
	"adds NET_RAW":          {add("NET_RAW"), neither, "NET_RAW"},
	"adds SYS_ADMIN":        {add("SYS_ADMIN"), neither, "SYS_ADMIN"},
	"adds ALL":              {add("ALL"), neither, "ALL"},
	"adds CAP_CHOWN":        {add("CAP_CHOWN"), neither, "CAP_CHOWN"},
	"adds one of tomorrow":  {add("FUTURE"), neither, "FUTURE"},
	"drops one only": {func(c *corev1.Container) { c.SecurityContext.Capabilities.Drop = []corev1.Capability{"NET_RAW"} },
		baselineOnly, "drop"},
	"may escalate":            {func(c *corev1.Container) { c.SecurityContext.AllowPrivilegeEscalation = ptr(true) }, baselineOnly, "allowPrivilegeEscalation"},
	"may escalate, unsaid":    {func(c *corev1.Container) { c.SecurityContext.AllowPrivilegeEscalation = nil }, baselineOnly, "allowPrivilegeEscalation"},
	"root by user":            {func(c *corev1.Container) { c.SecurityContext.RunAsUser = ptr(int64(0)) }, baselineOnly, "runAsUser=0"},
	"root by leave":           {func(c *corev1.Container) { c.SecurityContext.RunAsNonRoot = ptr(false) }, baselineOnly, "runAsNonRoot"},
	"root, unsaid":            {func(c *corev1.Container) { c.SecurityContext.RunAsNonRoot = nil }, baselineOnly, "runAsNonRoot"},
	"procMount":               {proc("Unmasked"), neither, "procMount"},
	"procMount, default":      {proc("Default"), both, ""},
	"procMount of tomorrow":   {proc("Future"), neither, "procMount"},
	"seccomp unconfined":      {seccomp("Unconfined"), neither, "seccomp"},
	"seccomp of the node":     {seccomp("Localhost"), both, ""},
	"seccomp of tomorrow":     {seccomp("Future"), neither, "seccomp"},
	"no seccomp":              {func(c *corev1.Container) { c.SecurityContext.SeccompProfile = nil }, baselineOnly, "seccomp"},
	"AppArmor unconfined":     {apparmor("Unconfined"), neither, "AppArmor"},
	"AppArmor of the runtime": {apparmor("RuntimeDefault"), both, ""},
	"AppArmor of the node":    {apparmor("Localhost"), both, ""},
	"AppArmor of tomorrow":    {apparmor("Future"), neither, "AppArmor"},
	"SELinux, container_t":    {selinux(corev1.SELinuxOptions{Type: "container_t", Level: "s0:c1,c2"}), both, ""},
	"SELinux, spc_t":          {selinux(corev1.SELinuxOptions{Type: "spc_t"}), neither, "seLinuxOptions"},
	"SELinux, a user":         {selinux(corev1.SELinuxOptions{User: "unconfined_u"}), neither, "seLinuxOptions"},
	"SELinux, a role":         {selinux(corev1.SELinuxOptions{Role: "unconfined_r"}), neither, "seLinuxOptions"},
	"host port": {func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}} },
		neither, "hostPort"},
	"port": {func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 80}} }, both, ""},
	"host process": {func(c *corev1.Container) {
		c.SecurityContext.WindowsOptions = &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}
	}, neither, "hostProcess"},
	"probe of another host": {func(c *corev1.Container) {
		c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "169.254.169.254", Port: intstr.FromInt32(80)}}}
	}, neither, "probe"},
}

func add(c corev1.Capability) func(*corev1.Container) {
	return func(to *corev1.Container) { to.SecurityContext.Capabilities.Add = []corev1.Capability{c} }
}

func proc(m corev1.ProcMountType) func(*corev1.Container) {
	return func(c *corev1.Container) { c.SecurityContext.ProcMount = &m }
}

func seccomp(t corev1.SeccompProfileType) func(*corev1.Container) {
	return func(c *corev1.Container) { c.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: t} }
}

func apparmor(t corev1.AppArmorProfileType) func(*corev1.Container) {
	return func(c *corev1.Container) { c.SecurityContext.AppArmorProfile = &corev1.AppArmorProfile{Type: t} }
}

func selinux(o corev1.SELinuxOptions) func(*corev1.Container) {
	return func(c *corev1.Container) { c.SecurityContext.SELinuxOptions = &o }
}

func expect(t *testing.T, p *corev1.Pod, rules confined.Rules, want verdict, say string) {
	t.Helper()
	got, why := judge(p, rules)
	if got != want || say != "" && !strings.Contains(strings.Join(why, "\n"), say) {
		t.Errorf("verdict %d, want %d; reasons %q, want one with %q", got, want, why, say)
	}
}

func TestControlsOfContainers(t *testing.T) {
	for name, tc := range perContainer {
		for _, kind := range kinds {
			t.Run(kind+": "+name, func(t *testing.T) {
				p := pod()
				tc.apply(at(p, kind))
				expect(t, p, confined.Rules{}, tc.want, tc.say)
			})
		}
	}
}

func TestControlsOfPods(t *testing.T) {
	level := func(change func(*corev1.PodSecurityContext)) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{}
			change(p.Spec.SecurityContext)
		}
	}
	sysctl := func(name string) func(*corev1.Pod) {
		return level(func(c *corev1.PodSecurityContext) { c.Sysctls = []corev1.Sysctl{{Name: name, Value: "1"}} })
	}
	for name, tc := range map[string]struct {
		apply func(*corev1.Pod)
		want  verdict
		say   string
	}{
		"hardened":              {func(*corev1.Pod) {}, both, ""},
		"the node's processes":  {func(p *corev1.Pod) { p.Spec.HostPID = true }, neither, "hostPID=true"},
		"the node's IPC":        {func(p *corev1.Pod) { p.Spec.HostIPC = true }, neither, "hostIPC=true"},
		"the node's network":    {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, neither, "hostNetwork=true"},
		"shared processes":      {func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr(true) }, baselineOnly, "shareProcessNamespace"},
		"shared processes, not": {func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr(false) }, both, ""},
		"a debugger's target": {func(p *corev1.Pod) { p.Spec.EphemeralContainers[0].TargetContainerName = "main" },
			baselineOnly, "shares the processes of container main"},
		"a safe sysctl":              {sysctl("net.ipv4.ip_unprivileged_port_start"), both, ""},
		"an unsafe sysctl":           {sysctl("kernel.msgmax"), neither, "kernel.msgmax"},
		"a safe sysctl with a slash": {sysctl("net/ipv4/ip_unprivileged_port_start"), neither, "sysctl"},
		"seccomp of the pod": {level(func(c *corev1.PodSecurityContext) { c.SeccompProfile = &corev1.SeccompProfile{Type: "Unconfined"} }),
			neither, "seccomp"},
		"AppArmor of the pod": {level(func(c *corev1.PodSecurityContext) { c.AppArmorProfile = &corev1.AppArmorProfile{Type: "Unconfined"} }),
			neither, "AppArmor"},
		"AppArmor by annotation": {func(p *corev1.Pod) {
			p.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/main": "unconfined"}
		}, neither, "AppArmor"},
		"SELinux of the pod": {level(func(c *corev1.PodSecurityContext) { c.SELinuxOptions = &corev1.SELinuxOptions{Type: "spc_t"} }),
			neither, "seLinuxOptions"},
		"root by the pod's user": {level(func(c *corev1.PodSecurityContext) { c.RunAsUser = ptr(int64(0)) }), baselineOnly, "runAsUser=0"},
		"a Windows host process": {level(func(c *corev1.PodSecurityContext) {
			c.WindowsOptions = &corev1.WindowsSecurityContextOptions{HostProcess: ptr(true)}
		}), neither, "hostProcess"},
		"a pod for Windows":        {func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, neither, `operating system "windows"`},
		"a pod for Linux, so said": {func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }, both, ""},
		"root in a user namespace": {func(p *corev1.Pod) {
			p.Spec.HostUsers = ptr(false)
			at(p, "main").SecurityContext.RunAsUser = ptr(int64(0))
		}, both, ""},
		"root in the node's": {func(p *corev1.Pod) {
			p.Spec.HostUsers = ptr(true)
			at(p, "main").SecurityContext.RunAsUser = ptr(int64(0))
		}, baselineOnly, "runAsUser=0"},
		"a volume of tomorrow": {func(p *corev1.Pod) { volume(p, corev1.VolumeSource{}) }, neither, "does not know"},
		"a volume of a web address": {func(p *corev1.Pod) {
			volume(p, corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}})
		}, baselineOnly, "nfs"},
		"a volume of the CSI driver": {func(p *corev1.Pod) {
			volume(p, corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.spiffe.io"}})
		}, both, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			tc.apply(p)
			expect(t, p, confined.Rules{}, tc.want, tc.say)
		})
	}
}

func TestPathsOfTheNode(t *testing.T) {
	for name, tc := range map[string]struct {
		apply func(*corev1.Pod)
		want  verdict
		say   string
	}{
		"an allowed path, read-only": {func(p *corev1.Pod) { hostPath(p, "/run/spire/agent/public/") }, both, ""},
		"another path":               {func(p *corev1.Pod) { hostPath(p, "/run/spire/agent-admin") }, neither, "volume v is /run/spire/agent-admin of the node, which is not among"},
		"the root":                   {func(p *corev1.Pod) { hostPath(p, "/") }, neither, "volume v is / of the node"},
		"no path":                    {func(p *corev1.Pod) { hostPath(p, "") }, neither, "of the node, which is not among"},
		"an allowed path, for writing": {func(p *corev1.Pod) { hostPath(p, "/run/spire/agent"); at(p, "debug").VolumeMounts[1].ReadOnly = false },
			neither, "container debug mounts it for writing"},
		"a claim, whole":      {claim, both, ""},
		"a part of the pod's": {func(p *corev1.Pod) { at(p, "main").VolumeMounts[0].SubPath = "x" }, both, ""},
		"an ephemeral one":    {func(p *corev1.Pod) { volume(p, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}) }, both, ""},
		"a part of a claim":   {func(p *corev1.Pod) { claim(p); at(p, "init").VolumeMounts[1].SubPath = "x" }, neither, "container init mounts a subPath of volume v"},
		"a part by an expression": {func(p *corev1.Pod) { claim(p); at(p, "main").VolumeMounts[1].SubPathExpr = "$(X)" }, neither,
			"container main mounts a subPath of volume v"},
		"a part of an ephemeral one": {func(p *corev1.Pod) {
			volume(p, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}})
			at(p, "main").VolumeMounts[1].SubPath = "x"
		}, neither, "container main mounts a subPath"},
		"a block device": {func(p *corev1.Pod) {
			claim(p)
			at(p, "main").VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/x"}}
		}, neither, "container main uses the device of volume v"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			tc.apply(p)
			expect(t, p, confined.Rules{AllowedHostPaths: []string{"/run/spire/agent"}}, tc.want, tc.say)
			if j := confined.Paths(p, confined.Rules{AllowedHostPaths: []string{"/run/spire/agent"}}); j.Met() != (tc.want == both) {
				t.Errorf("paths: %q", j.Reasons())
			}
		})
	}
}

// known is a claim and its volume.
type known struct {
	claim *corev1.PersistentVolumeClaim
	pv    *corev1.PersistentVolume
	asked int
}

func (k *known) Claim(p *corev1.Pod, v *corev1.Volume) confined.Volume {
	k.asked++
	if _, err := confined.Bound(p, v, k.claim); err != nil {
		return confined.Volume{Why: err.Error()}
	}
	return confined.OfVolume(k.claim, k.pv)
}

func newKnown(source corev1.PersistentVolumeSource) *known {
	return &known{
		claim: &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "claim-uid"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}},
		pv: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "data", UID: "claim-uid"}}},
	}
}

func TestWhatAClaimIs(t *testing.T) {
	csi := corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d"}}
	folder := func(path string) corev1.PersistentVolumeSource {
		return corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}
	}
	local := corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/mnt/disk"}}
	part := func(p *corev1.Pod) { at(p, "main").VolumeMounts[1].SubPath = "x" }
	device := func(p *corev1.Pod) {
		at(p, "main").VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/x"}}
	}
	whole := func(*corev1.Pod) {}
	same := func(*known) {}
	for name, tc := range map[string]struct {
		source  corev1.PersistentVolumeSource
		pod     func(*corev1.Pod)
		change  func(*known)
		refused string
		unknown string
	}{
		"a storage system's":              {csi, whole, same, "", ""},
		"a part of a storage system's":    {csi, part, same, "", ""},
		"the device of one":               {csi, device, same, "", ""},
		"an allowed folder":               {folder("/run/spire/agent/x"), whole, same, "", ""},
		"an allowed folder, as a device":  {folder("/run/spire/agent/x"), device, same, "for writing", ""},
		"another folder":                  {folder("/var/lib/kubelet"), whole, same, "volume v is /var/lib/kubelet of the node", ""},
		"a part of another folder":        {folder("/var"), part, same, "volume v is /var of the node", ""},
		"a disk of the node":              {local, whole, same, "local PersistentVolume, /mnt/disk", ""},
		"the device of a disk":            {local, device, same, "local PersistentVolume", ""},
		"a driver's":                      {corev1.PersistentVolumeSource{FlexVolume: &corev1.FlexPersistentVolumeSource{}}, whole, same, "", ""},
		"a part of a driver's":            {corev1.PersistentVolumeSource{FlexVolume: &corev1.FlexPersistentVolumeSource{}}, part, same, "is not known", ""},
		"one of tomorrow":                 {corev1.PersistentVolumeSource{}, part, same, "is not known", ""},
		"no claim":                        {csi, whole, func(k *known) { k.claim = nil }, "", "does not exist yet"},
		"an unbound claim":                {csi, whole, func(k *known) { k.claim.Spec.VolumeName = "" }, "", "not bound"},
		"no volume":                       {csi, whole, func(k *known) { k.pv = nil }, "", "does not exist"},
		"a volume that names another":     {csi, whole, func(k *known) { k.pv.Spec.ClaimRef.UID = "other" }, "", "is not bound to claim data"},
		"a volume that names none":        {csi, whole, func(k *known) { k.pv.Spec.ClaimRef = nil }, "", "is not bound to claim data"},
		"a volume of another namespace's": {csi, whole, func(k *known) { k.pv.Spec.ClaimRef.Namespace = "other" }, "", "is not bound"},
		"another volume":                  {csi, whole, func(k *known) { k.pv.Name = "other" }, "", "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKnown(tc.source)
			tc.change(k)
			p := pod()
			claim(p)
			tc.pod(p)
			rules := confined.Rules{AllowedHostPaths: []string{"/run/spire/agent"}, Claims: k}
			for _, level := range []confined.Level{confined.Baseline, confined.Restricted} {
				j := confined.Judge(level, p, rules)
				if !strings.Contains(strings.Join(j.Refused, " "), tc.refused) || (tc.refused == "") != (len(j.Refused) == 0) {
					t.Errorf("%s: refused %q, want %q", level, j.Refused, tc.refused)
				}
				if !strings.Contains(strings.Join(j.Unknown, " "), tc.unknown) || (tc.unknown == "") != (len(j.Unknown) == 0) {
					t.Errorf("%s: unknown %q, want %q", level, j.Unknown, tc.unknown)
				}
			}
		})
	}
}

func TestAnEphemeralVolumesClaimIsThePods(t *testing.T) {
	k := newKnown(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}})
	k.claim.Name, k.pv.Spec.ClaimRef.Name = "p-v", "p-v"
	p := pod()
	volume(p, corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}})
	if j := confined.Paths(p, confined.Rules{Claims: k}); len(j.Unknown) != 1 || !strings.Contains(j.Unknown[0], "was not made for this pod") {
		t.Errorf("a claim of that name: %+v", j)
	}
	k.claim.OwnerReferences = []metav1.OwnerReference{{UID: types.UID("pod-uid"), Controller: ptr(true)}}
	if j := confined.Paths(p, confined.Rules{Claims: k}); len(j.Refused) != 1 || !strings.Contains(j.Refused[0], "/etc of the node") {
		t.Errorf("the pod's claim: %+v", j)
	}
}

func TestOnlyPartsAreAskedAbout(t *testing.T) {
	k := newKnown(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}})
	p := pod()
	claim(p)
	if j := confined.Paths(p, confined.Rules{Claims: k, PartsOnly: true}); !j.Met() || k.asked > 0 {
		t.Errorf("whole: %+v, asked %d times", j, k.asked)
	}
	at(p, "main").VolumeMounts[1].SubPath = "x"
	if j := confined.Paths(p, confined.Rules{Claims: k, PartsOnly: true}); j.Met() {
		t.Error("a part of a folder of the node is accepted")
	}
}

func TestALevelThatIsNotKnownIsMetByNoPod(t *testing.T) {
	for _, level := range []confined.Level{"", "privileged", "Restricted"} {
		if confined.Judge(level, pod(), confined.Rules{}).Met() {
			t.Errorf("level %q is met", level)
		}
	}
}

// TestTheStandardsAreTheseOnes fails when another version of the module adds or changes a check, so that the documentation and
// the table above are looked at again.
func TestTheStandardsAreTheseOnes(t *testing.T) {
	want := []string{
		"allowPrivilegeEscalation 1.25", "appArmorProfile 1.0", "capabilities_baseline 1.0", "capabilities_restricted 1.25",
		"hostNamespaces 1.0", "hostPathVolumes 1.0", "hostPorts 1.0", "hostProbesAndHostLifecycle 1.34", "privileged 1.0",
		"procMount 1.35", "procMount_restricted 1.35", "restrictedVolumes 1.0", "runAsNonRoot 1.35", "runAsUser 1.35",
		"seLinuxOptions 1.31", "seccompProfile_baseline 1.19", "seccompProfile_restricted 1.25", "sysctls 1.32", "windowsHostProcess 1.0",
	}
	var got []string
	for _, c := range policy.DefaultChecks() {
		got = append(got, string(c.ID)+" "+strings.TrimPrefix(c.Versions[len(c.Versions)-1].MinimumVersion.String(), "v"))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("checks\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
