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
		for what, path := range map[string]string{"the container runtime's socket": c.CRISocket, "the kubelet's folder": own.kubelet} {
			if workloadclaim.Within(path, []string{allowed}) {
				p.Add("allowed_host_paths", "%q holds %s %s: who mounts that is not confined", allowed, what, path)
			}
		}
	}
	return own
}

// mounts is what the runtime tells of a container's mounts.
type mounts struct {
	told    bool
	foreign string // one that is neither the pod's own nor allowed
}

// localVolumes is where the kubelet mounts PersistentVolumes that are a folder or disk of the node (kubernetes, pkg/volume/local).
const localVolumes = "volumes/kubernetes.io~local-volume"

// foreign looks for a path of the node in the container that is not the pod's own. What is below volume-subpaths is the pod's only as far as its
// spec says so (package confined). A kubelet mounts at least the file for the container's last words, so a runtime that names no mount at
// all does not tell them.
func (o ownPaths) foreign(c runtime.Container) mounts {
	pod := filepath.Join(o.kubelet, "pods", c.PodUID)
	for _, m := range c.Mounts {
		local := workloadclaim.Within(m.Path, []string{filepath.Join(pod, localVolumes)})
		if workloadclaim.Within(m.Path, []string{pod}) && !local || m.ReadOnly && workloadclaim.Within(m.Path, o.allowed) {
			continue
		}
		return mounts{told: true, foreign: m.Path}
	}
	return mounts{told: len(c.Mounts) > 0}
}
