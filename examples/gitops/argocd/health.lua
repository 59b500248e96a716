-- Health of a GPUBatchJob for Argo CD: resource.customizations.health.gpubatch.dev_GPUBatchJob in argocd-cm.
-- It needs no more of Lua than Argo CD opens.
local health = {status = "Progressing", message = "The operator hasn't seen it yet."}
local status = obj.status
if status == nil or status.phase == nil or status.observedGeneration ~= obj.metadata.generation then
  return health
end
local message = status.phase
if status.pending ~= nil and status.pending.message ~= nil then
  message = message .. ": " .. status.pending.message
elseif status.progress ~= nil and status.progress.summary ~= nil then
  message = message .. ": " .. status.progress.summary
end
if status.conditions ~= nil then
  for _, condition in ipairs(status.conditions) do
    if (condition.type == "Complete" or condition.type == "Failed") and condition.status == "True" then
      message = condition.reason .. ": " .. condition.message
    end
  end
end
health.message = message
if status.phase == "Succeeded" then
  health.status = "Healthy"
elseif status.phase == "Failed" then
  health.status = "Degraded"
elseif status.phase == "Suspended" or status.phase == "Cancelled" then
  health.status = "Suspended"
end
return health
