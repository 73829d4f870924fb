package workloadplugin

import (
	"path/filepath"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// ownPaths are the paths of the node that a pod may have mounted and still be confined to itself.
type ownPaths struct {
	kubelet string   // the kubelet's folder: below it, pods/<UID> is the pod's own (kubernetes, pkg/kubelet: getPodDir)
	allowed []string // by the administrator
}

func (c Config) ownPaths(p *pluginconf.Problems) ownPaths {
	own := ownPaths{kubelet: defaultKubeletRoot, allowed: c.AllowedHostPaths}
	if c.KubeletRoot != "" {
		own.kubelet = filepath.Clean(c.KubeletRoot)
	}
	if !filepath.IsAbs(own.kubelet) {
		p.Add("kubelet_root", "%q is not an absolute path", c.KubeletRoot)
	}
	for _, allowed := range c.AllowedHostPaths {
		if err := workloadclaim.CheckHostPath(allowed); err != nil {
			p.Add("allowed_host_paths", "%v", err)
		}
	}
	return own
}

// foreign tells whether a path of the node is in the container that is not the pod's own, and which. A kubelet mounts at least the file
// for the container's last words, so a runtime that names no mount at all does not tell them, and proves nothing.
func (o ownPaths) foreign(c runtime.Container) (string, workloadclaim.Fact) {
	if len(c.Mounts) == 0 {
		return "", workloadclaim.Unproven
	}
	pod := filepath.Join(o.kubelet, "pods", c.PodUID)
	for _, m := range c.Mounts {
		if !workloadclaim.Within(m, []string{pod}) && !workloadclaim.Within(m, o.allowed) {
			return m, workloadclaim.Yes
		}
	}
	return "", workloadclaim.No
}
