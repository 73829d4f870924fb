package workloadclaim

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Posture is what the container runtime reports of how the node's kernel confines a container. It is empty for containers
// that the kernel does not confine one by one: those of gVisor, Kata Containers and runtimes that are not known.
type Posture struct {
	// Capabilities are all that any of the container's sets holds, without "CAP_", sorted. Nil means not reported, empty none.
	Capabilities []string
	// User is the ID of the container's first user, in decimal; UserNamespace tells whether it is one of a user namespace.
	User          string
	UserNamespace Fact
	// NoNewPrivileges tells whether no process can get more privileges by executing a file (prctl(2), PR_SET_NO_NEW_PRIVS).
	NoNewPrivileges Fact
	// ReadOnlyRoot tells whether the container's root file system is mounted read-only.
	ReadOnlyRoot Fact
	// MaskedProc tells whether the files of /proc that Kubernetes hides are hidden (procMount Default).
	MaskedProc Fact
	// Seccomp and AppArmor are the profiles in force.
	Seccomp, AppArmor Profile
	// PIDsLimit is the most processes and threads that the container can have; 0 means not known or without limit.
	PIDsLimit int64
}

// Profile is a seccomp or AppArmor profile.
type Profile struct {
	// Confined tells whether there is one that forbids anything.
	Confined Fact
	// Type is what the kubelet asked for, ProfileRuntimeDefault or ProfileLocalhost; "" if it is not reported.
	Type string
	// Name is a localhost profile's.
	Name string
}

// The types of profiles.
const (
	ProfileUnconfined     = "unconfined"
	ProfileConfined       = "confined"
	ProfileRuntimeDefault = "runtime-default"
	ProfileLocalhost      = "localhost"
)

// The sandboxes that a runtime handler can put a pod into.
const (
	SandboxRunc   = "runc"   // namespaces of the node's kernel, by runc or another OCI runtime behind the same shim
	SandboxGVisor = "gvisor" // gVisor: a kernel in user space
	SandboxKata   = "kata"   // Kata Containers: a virtual machine
)

// NoCapability is the value of a KindCapability selector for a container without any.
const NoCapability = "none"

// maxCapabilities bounds the selectors of one container; Linux 6 has 41 capabilities.
const maxCapabilities = 64

// selectors adds what is known.
func (p Posture) selectors(add func(Kind, string)) error {
	if len(p.Capabilities) > maxCapabilities {
		return fmt.Errorf("workloadclaim: %d capabilities, the limit is %d", len(p.Capabilities), maxCapabilities)
	}
	if p.Capabilities != nil && len(p.Capabilities) == 0 {
		add(KindCapability, NoCapability)
	}
	for _, c := range p.Capabilities {
		add(KindCapability, strings.ToLower(c))
	}
	for kind, fact := range map[Kind]Fact{
		KindUserNamespace: p.UserNamespace, KindNoNewPrivileges: p.NoNewPrivileges, KindReadOnlyRoot: p.ReadOnlyRoot,
	} {
		if fact != Unproven {
			add(kind, fact.String())
		}
	}
	add(KindUser, p.User)
	p.Seccomp.selectors(KindSeccomp, add)
	p.AppArmor.selectors(KindAppArmor, add)
	if p.PIDsLimit > 0 {
		add(KindPIDsLimit, strconv.FormatInt(p.PIDsLimit, 10))
	}
	return nil
}

func (p Profile) selectors(kind Kind, add func(Kind, string)) {
	switch p.Confined {
	case Unproven:
	case No:
		add(kind, ProfileUnconfined)
	case Yes:
		add(kind, ProfileConfined)
		add(kind, p.Type)
		// A name that has no lower-case spelling of its own makes no selector.
		if value := ProfileLocalhost + "/" + p.Name; p.Type == ProfileLocalhost && profileValue(value) == nil {
			add(kind, value)
		}
	}
}

var (
	capabilityRule = regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	profileRule    = regexp.MustCompile(`^[a-z0-9_][-a-z0-9_./]*$`)
)

func capability(v string) error {
	if len(v) > 40 || !capabilityRule.MatchString(v) {
		return fmt.Errorf("%s is not a capability in lower case, such as net_bind_service, nor %q", quoteShort(v), NoCapability)
	}
	return nil
}

func profileValue(v string) error {
	switch v {
	case ProfileUnconfined, ProfileConfined, ProfileRuntimeDefault, ProfileLocalhost:
		return nil
	}
	if name, ok := strings.CutPrefix(v, ProfileLocalhost+"/"); ok && len(name) <= 200 && profileRule.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%s is not %s, %s, %s, %s or %s/<name>", quoteShort(v),
		ProfileUnconfined, ProfileConfined, ProfileRuntimeDefault, ProfileLocalhost, ProfileLocalhost)
}

func sandboxValue(v string) error {
	if v != SandboxRunc && v != SandboxGVisor && v != SandboxKata {
		return fmt.Errorf("%s is not %s, %s or %s", quoteShort(v), SandboxRunc, SandboxGVisor, SandboxKata)
	}
	return nil
}

func userID(v string) error {
	if n, err := strconv.ParseUint(v, 10, 32); err != nil || strconv.FormatUint(n, 10) != v {
		return fmt.Errorf("%s is not a user ID in decimal", quoteShort(v))
	}
	return nil
}

func positive(v string) error {
	if n, err := strconv.ParseInt(v, 10, 64); err != nil || n <= 0 || strconv.FormatInt(n, 10) != v {
		return fmt.Errorf("%s is not a positive number in decimal", quoteShort(v))
	}
	return nil
}
