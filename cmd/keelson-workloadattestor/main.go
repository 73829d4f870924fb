// Command keelson-workloadattestor is an external plugin for the SPIRE agent: WorkloadAttestor "keelson". The agent
// starts it; its configuration is the agent's plugin_data (package workloadattestor/workloadplugin, Config).
package main

import (
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadplugin"
)

func main() {
	plugin := workloadplugin.New(time.Now)
	pluginmain.Serve(
		workloadattestorv1.WorkloadAttestorPluginServer(plugin),
		configv1.ConfigServiceServer(plugin),
	)
}
