package confined_test

import (
	"strings"
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/confined"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// reported is a container that meets level restricted, as the runtime reports it.
func reported() confined.Report {
	return confined.Report{
		Container: "main", Known: true,
		Privileged: workloadclaim.No, HostPID: workloadclaim.No, HostNetwork: workloadclaim.No, HostIPC: workloadclaim.No, AddedCapabilities: workloadclaim.No,
		Posture: workloadclaim.Posture{
			Capabilities: []string{}, User: "65532", UserNamespace: workloadclaim.No, NoNewPrivileges: workloadclaim.Yes,
			MaskedProc: workloadclaim.Yes, Seccomp: workloadclaim.Profile{Confined: workloadclaim.Yes},
		},
	}
}

func TestReports(t *testing.T) {
	const yes, no, unproven = workloadclaim.Yes, workloadclaim.No, workloadclaim.Unproven
	capabilities := func(names ...string) func(*confined.Report) {
		return func(r *confined.Report) { r.Posture.Capabilities = names }
	}
	for name, tc := range map[string]struct {
		change               func(*confined.Report)
		baseline, restricted workloadclaim.Fact
		say                  string
	}{
		"hardened":                    {func(*confined.Report) {}, yes, yes, ""},
		"nothing reported":            {func(r *confined.Report) { r.Known = false }, unproven, unproven, "how the container is confined"},
		"privileged":                  {func(r *confined.Report) { r.Privileged = yes }, no, no, "privileged"},
		"privileged, unproven":        {func(r *confined.Report) { r.Privileged = unproven }, unproven, unproven, "whether the container is privileged"},
		"the node's processes":        {func(r *confined.Report) { r.HostPID = yes }, no, no, "hostPID"},
		"processes, unproven":         {func(r *confined.Report) { r.HostPID = unproven }, unproven, unproven, "PID namespace"},
		"the node's network":          {func(r *confined.Report) { r.HostNetwork = yes }, no, no, "hostNetwork"},
		"network, unproven":           {func(r *confined.Report) { r.HostNetwork = unproven }, unproven, unproven, "network namespace"},
		"the node's IPC":              {func(r *confined.Report) { r.HostIPC = yes }, no, no, "hostIPC"},
		"IPC, unproven":               {func(r *confined.Report) { r.HostIPC = unproven }, unproven, unproven, "IPC namespace"},
		"capabilities, unproven":      {func(r *confined.Report) { r.AddedCapabilities, r.Posture.Capabilities = unproven, nil }, unproven, unproven, "its capabilities"},
		"capabilities, not listed":    {func(r *confined.Report) { r.Posture.Capabilities = nil }, unproven, unproven, "its capabilities"},
		"the default capabilities":    {capabilities(confined.DefaultCapabilities...), yes, no, "CHOWN"},
		"NET_BIND_SERVICE":            {capabilities("NET_BIND_SERVICE"), yes, yes, ""},
		"NET_BIND_SERVICE and CHOWN":  {capabilities("CHOWN", "NET_BIND_SERVICE"), yes, no, `"CHOWN"`},
		"BPF":                         {capabilities("BPF"), no, no, `"BPF"`},
		"one of tomorrow":             {capabilities("FUTURE"), no, no, `"FUTURE"`},
		"root":                        {func(r *confined.Report) { r.Posture.User = "0" }, yes, no, "runAsUser=0"},
		"root in a user namespace":    {func(r *confined.Report) { r.Posture.User, r.Posture.UserNamespace = "0", yes }, yes, yes, ""},
		"no user":                     {func(r *confined.Report) { r.Posture.User = "" }, yes, no, "its user"},
		"may escalate":                {func(r *confined.Report) { r.Posture.NoNewPrivileges = no }, yes, no, "allowPrivilegeEscalation"},
		"escalation, unproven":        {func(r *confined.Report) { r.Posture.NoNewPrivileges = unproven }, yes, no, "allowPrivilegeEscalation"},
		"no seccomp":                  {func(r *confined.Report) { r.Posture.Seccomp.Confined = no }, yes, no, "seccomp"},
		"seccomp, unproven":           {func(r *confined.Report) { r.Posture.Seccomp.Confined = unproven }, yes, no, "seccomp"},
		"procMount":                   {func(r *confined.Report) { r.Posture.MaskedProc = no }, no, no, "procMount"},
		"procMount, unproven":         {func(r *confined.Report) { r.Posture.MaskedProc = unproven }, no, no, "procMount"},
		"procMount, a user namespace": {func(r *confined.Report) { r.Posture.MaskedProc, r.Posture.UserNamespace = no, yes }, yes, no, "procMount"},
		"AppArmor unconfined":         {func(r *confined.Report) { r.AppArmorRefused = true }, no, no, "AppArmor"},
		"SELinux container_t":         {func(r *confined.Report) { r.SELinuxType = "container_t" }, yes, yes, ""},
		"SELinux spc_t":               {func(r *confined.Report) { r.SELinuxType = "spc_t" }, no, no, "seLinuxOptions"},
		"SELinux user":                {func(r *confined.Report) { r.SELinuxUser = "unconfined_u" }, no, no, "seLinuxOptions"},
		"a safe sysctl":               {func(r *confined.Report) { r.Sysctls = []string{"net.ipv4.ping_group_range"} }, yes, yes, ""},
		"an unsafe sysctl":            {func(r *confined.Report) { r.Sysctls = []string{"kernel.msgmax"} }, no, no, "kernel.msgmax"},
		"a host port":                 {func(r *confined.Report) { r.HostPorts = []int32{80} }, no, no, "hostPort"},
	} {
		t.Run(name, func(t *testing.T) {
			r := reported()
			tc.change(&r)
			baseline, restricted := r.Judge(confined.Baseline), r.Judge(confined.Restricted)
			if got := confined.Meets(baseline); got != tc.baseline {
				t.Errorf("baseline is %s, want %s: %q", got, tc.baseline, baseline.Reasons())
			}
			if got := confined.Meets(restricted); got != tc.restricted {
				t.Errorf("restricted is %s, want %s: %q", got, tc.restricted, restricted.Reasons())
			}
			if why := strings.Join(restricted.Reasons(), " "); !strings.Contains(why, tc.say) {
				t.Errorf("reasons %q, want one with %q", why, tc.say)
			}
		})
	}
}

func TestMeets(t *testing.T) {
	refused, unknown := confined.Judgement{Refused: []string{"x"}}, confined.Unknowable("y")
	for _, tc := range []struct {
		of   []confined.Judgement
		want workloadclaim.Fact
	}{
		{nil, workloadclaim.Yes},
		{[]confined.Judgement{{}, {}}, workloadclaim.Yes},
		{[]confined.Judgement{{}, unknown}, workloadclaim.Unproven},
		{[]confined.Judgement{unknown, refused}, workloadclaim.No},
	} {
		if got := confined.Meets(tc.of...); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.of, got, tc.want)
		}
	}
}
