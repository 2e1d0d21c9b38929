-- The same work as spigate's stateless path, in nginx: signature, freshness, required fields, the
-- backend's reply. Written to be fast: HMAC by FFI in nginx's own libcrypto with a keyed context
-- that is reset for each request, JSON by lua-cjson, nothing looked up twice.

local ffi = require "ffi"
local cjson = require "cjson.safe"

ffi.cdef [[
typedef struct evp_md_st EVP_MD;
typedef struct hmac_ctx_st HMAC_CTX;
const EVP_MD *EVP_sha256(void);
HMAC_CTX *HMAC_CTX_new(void);
int HMAC_Init_ex(HMAC_CTX *ctx, const void *key, int len, const EVP_MD *md, void *impl);
int HMAC_Update(HMAC_CTX *ctx, const unsigned char *data, size_t len);
int HMAC_Final(HMAC_CTX *ctx, unsigned char *md, unsigned int *len);
]]

local C = ffi.C
local byte, gsub, format, sort, concat = string.byte, string.gsub, string.format, table.sort, table.concat
local floor, type, ipairs, pairs = math.floor, type, ipairs, pairs

local M = {}

local context = C.HMAC_CTX_new()
local digest = ffi.new("unsigned char[32]")
local digest_length = ffi.new("unsigned int[1]")

local max_age, max_future = 36500 * 86400, 60
local required = { "user_id", "app_id", "period", "time_stamp", "spec", "cloud_info" }

function M.init(key)
  assert(C.HMAC_Init_ex(context, key, #key, C.EVP_sha256(), nil) == 1)
end

local function hex(character)
  return format("%%%02X", byte(character))
end

local function encode(text)
  return (gsub(text, "[^A-Za-z0-9%-_.~]", hex))
end

local function hmac(text)
  C.HMAC_Init_ex(context, nil, 0, nil, nil)
  C.HMAC_Update(context, text, #text)
  C.HMAC_Final(context, digest, digest_length)
  return ffi.string(digest, 32)
end

-- No early end: how many bytes agree is not told by the time that it takes.
local function same(a, b)
  if #a ~= #b then return false end
  local difference = 0
  for at = 1, #a do
    difference = bit.bor(difference, bit.bxor(byte(a, at), byte(b, at)))
  end
  return difference == 0
end

local function seconds(text)
  local year, month, day, hour, minute, second = text:match("^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)Z$")
  if not year then return nil end
  year, month, day = tonumber(year), tonumber(month), tonumber(day)
  if month <= 2 then year, month = year - 1, month + 12 end
  local days = 365 * year + floor(year / 4) - floor(year / 100) + floor(year / 400) + floor((153 * month - 457) / 5) + day - 719469
  return days * 86400 + tonumber(hour) * 3600 + tonumber(minute) * 60 + tonumber(second)
end

local function refuse(status, code)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  local body = '{"success":false,"code":"' .. code .. '"}'
  ngx.header["Content-Length"] = #body
  ngx.print(body)
end

function M.handle()
  local parameters, problem = ngx.req.get_uri_args(64)
  if problem then return refuse(400, "malformed_request") end
  local signature = parameters.signature
  if type(signature) ~= "string" then return refuse(401, "signature_missing") end
  local mac = ngx.decode_base64(signature)
  local names, count = {}, 0
  for name in pairs(parameters) do
    if name ~= "signature" then
      count = count + 1
      names[count] = name
    end
  end
  sort(names)
  local parts, used = {}, 0
  for _, name in ipairs(names) do
    local value = parameters[name]
    if type(value) == "table" then
      for _, one in ipairs(value) do
        used = used + 1
        parts[used] = encode(name) .. "=" .. encode(one == true and "" or one)
      end
    else
      used = used + 1
      parts[used] = encode(name) .. "=" .. encode(value == true and "" or value)
    end
  end
  if not mac or not same(mac, hmac("GET\n" .. concat(parts, "&"))) then
    return refuse(401, "signature_invalid")
  end
  local signed = type(parameters.time_stamp) == "string" and seconds(parameters.time_stamp)
  if not signed then return refuse(401, "timestamp_invalid") end
  local age = ngx.time() - signed
  if age > max_age then return refuse(401, "timestamp_expired") end
  if age < -max_future then return refuse(401, "timestamp_in_future") end
  if parameters.action ~= "CreateAppInstance" then return refuse(400, "unknown_action") end
  for _, name in ipairs(required) do
    if type(parameters[name]) ~= "string" then return refuse(400, "field_missing") end
  end
  if not ngx.decode_base64(parameters.spec) then return refuse(400, "field_invalid") end
  local cloud = ngx.decode_base64(parameters.cloud_info)
  if type(cloud and cjson.decode(cloud)) ~= "table" then return refuse(400, "field_invalid") end

  -- The reply is judged before a byte of it is passed on, so it is taken as a whole.
  local reply = ngx.location.capture("/backend", { args = ngx.var.args })
  if reply.truncated or reply.status ~= 200 then return refuse(502, "backend_error") end
  local media = reply.header["Content-Type"]
  if not media or not media:find("^application/json") then return refuse(502, "backend_contract") end
  local body = cjson.decode(reply.body)
  if type(body) ~= "table" or type(body.success) ~= "boolean" then return refuse(502, "backend_contract") end
  if body.success then
    local instance = body.instanceId
    if type(instance) ~= "string" or #instance < 1 or #instance > 128 then return refuse(502, "backend_contract") end
    if body.appInfo ~= nil and type(body.appInfo) ~= "table" then return refuse(502, "backend_contract") end
  end
  ngx.header["Content-Type"] = "application/json"
  ngx.header["Content-Length"] = #reply.body
  ngx.print(reply.body)
end

return M
